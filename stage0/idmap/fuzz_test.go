package idmap

import (
	"encoding/binary"
	"testing"
)

// FuzzXattr holds that a layer's attributes, whatever is in them, are mapped or refused.
func FuzzXattr(f *testing.F) {
	const caps, acl = "security.capability", "system.posix_acl_access"
	f.Add(caps, []byte("\x01\x00\x00\x02"+"0123456789abcdef"))
	f.Add(caps, []byte("\x01\x00\x00\x03"+"0123456789abcdef"+"\x02\x00\x00\x00"))
	f.Add(acl, []byte("\x02\x00\x00\x00"+"\x02\x00\x06\x00\x01\x00\x00\x00"))
	f.Add(acl, []byte("\x02\x00\x00\x00"+"\x01\x00\x06\x00\x01\x00\x00"))
	m := Map{ranges(0, 100000, 65536), ranges(0, 200000, 65536)}
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		got, err := m.Xattr(name, value)
		if err != nil {
			return
		}
		if name != caps && len(got) != len(value) {
			t.Errorf("%s of %d bytes became %d", name, len(value), len(got))
		}
		if name == caps && (len(got) != 24 || binary.LittleEndian.Uint32(got[20:])-100000 >= 65536) {
			t.Errorf("capabilities %x", got)
		}
	})
}
