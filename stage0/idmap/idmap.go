// Package idmap maps the owners of an image's files to those that a user namespace has
// on the node, in all three ways that there are: a number, the text of an extended
// attribute that holds one, and a user namespace with which the kernel does it.
package idmap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Map says which ids of the node those of a user namespace are. What it does not
// name does not exist there. The zero value maps nothing, and does not pass Check.
type Map struct {
	UIDs []specs.LinuxIDMapping `json:"uids"`
	GIDs []specs.LinuxIDMapping `json:"gids"`
}

// maxRanges is how many the kernel takes, UID_GID_MAP_MAX_EXTENTS.
const maxRanges = 340

// Check returns ErrInvalid for a map that the kernel would not take, and for one
// without root: nobody could own the root of a file system then.
func (m Map) Check() error {
	for _, ids := range []struct {
		kind   string
		ranges []specs.LinuxIDMapping
	}{{"uids", m.UIDs}, {"gids", m.GIDs}} {
		if err := checkRanges(ids.ranges); err != nil {
			return fmt.Errorf("mapping of %s: %w", ids.kind, err)
		}
	}
	return nil
}

func checkRanges(ranges []specs.LinuxIDMapping) error {
	if len(ranges) > maxRanges {
		return fmt.Errorf("%d ranges, the kernel takes %d: %w", len(ranges), maxRanges, errdefs.ErrInvalid)
	}
	for _, r := range ranges {
		// The last id is no id: it says "none".
		if r.Size == 0 || r.ContainerID > math.MaxUint32-r.Size || r.HostID > math.MaxUint32-r.Size {
			return fmt.Errorf("range %s is empty or leaves 32 bits: %w", text(r), errdefs.ErrInvalid)
		}
	}
	for _, side := range []func(specs.LinuxIDMapping) uint32{inside, outside} {
		sorted := slices.SortedFunc(slices.Values(ranges), func(a, b specs.LinuxIDMapping) int { return cmp.Compare(side(a), side(b)) })
		for i := 1; i < len(sorted); i++ {
			if a, b := sorted[i-1], sorted[i]; side(a)+a.Size > side(b) {
				return fmt.Errorf("ranges %s and %s overlap: %w", text(a), text(b), errdefs.ErrInvalid)
			}
		}
	}
	if _, ok := find(ranges, 0); !ok {
		return fmt.Errorf("0 is not mapped: %w", errdefs.ErrInvalid)
	}
	return nil
}

func inside(r specs.LinuxIDMapping) uint32  { return r.ContainerID }
func outside(r specs.LinuxIDMapping) uint32 { return r.HostID }

// text is a range as /proc/PID/uid_map has it.
func text(r specs.LinuxIDMapping) string {
	return fmt.Sprintf("\"%d %d %d\"", r.ContainerID, r.HostID, r.Size)
}

func find(ranges []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + (id - r.ContainerID), true
		}
	}
	return 0, false
}

// Owner returns the node's ids of an owner in the namespace. ErrInvalid says that
// the namespace has no such owner.
func (m Map) Owner(uid, gid uint32) (hostUID, hostGID uint32, err error) {
	hostUID, u := find(m.UIDs, uid)
	hostGID, g := find(m.GIDs, gid)
	if !u || !g {
		return 0, 0, fmt.Errorf("owner %d:%d is not in the user namespace: %w", uid, gid, errdefs.ErrInvalid)
	}
	return hostUID, hostGID, nil
}

// capability is struct vfs_ns_cap_data of linux/capability.h, little-endian: version
// and flags, two pairs of sets, and from version 3 on the uid that is root where they
// count. In version 2 it is that of the node.
const (
	capability   = "security.capability"
	capVersion2  = 0x02000000
	capVersion3  = 0x03000000
	capVersions  = 0xff000000
	capSize2     = 20
	capSize3     = capSize2 + 4
	aclEntrySize = 8 // of struct posix_acl_xattr_entry: tag (2), permissions (2), id (4)
	aclHeader    = 4
	aclVersion   = 2
	aclUser      = 0x02
	aclGroup     = 0x08
)

// Xattr returns the value of an extended attribute with the ids in it mapped, as the
// kernel's id-mapped mounts show it: those of file capabilities and of access lists. All
// others are as they were. ErrInvalid says that an id is not in the namespace, or that
// the value is not what its name says.
func (m Map) Xattr(name string, value []byte) ([]byte, error) {
	switch name {
	case capability:
		return m.capability(value)
	case "system.posix_acl_access", "system.posix_acl_default":
		return m.acl(value)
	}
	return value, nil
}

func (m Map) capability(value []byte) ([]byte, error) {
	var root uint32
	mapped := make([]byte, capSize3)
	version := uint32(0)
	if len(value) >= 4 {
		version = binary.LittleEndian.Uint32(value)
	}
	switch {
	case version&capVersions == capVersion2 && len(value) == capSize2:
	case version&capVersions == capVersion3 && len(value) == capSize3:
		root = binary.LittleEndian.Uint32(value[capSize2:])
	default:
		return nil, fmt.Errorf("%s of %d bytes and version %#x: %w", capability, len(value), version, errdefs.ErrInvalid)
	}
	host, ok := find(m.UIDs, root)
	if !ok {
		return nil, fmt.Errorf("%s of root %d, who is not in the user namespace: %w", capability, root, errdefs.ErrInvalid)
	}
	copy(mapped, value)
	binary.LittleEndian.PutUint32(mapped, version&^capVersions|capVersion3)
	binary.LittleEndian.PutUint32(mapped[capSize2:], host)
	return mapped, nil
}

func (m Map) acl(value []byte) ([]byte, error) {
	if len(value) < aclHeader || (len(value)-aclHeader)%aclEntrySize != 0 || binary.LittleEndian.Uint32(value) != aclVersion {
		return nil, fmt.Errorf("access list of %d bytes: %w", len(value), errdefs.ErrInvalid)
	}
	mapped := slices.Clone(value)
	for e := mapped[aclHeader:]; len(e) > 0; e = e[aclEntrySize:] {
		var ranges []specs.LinuxIDMapping
		switch binary.LittleEndian.Uint16(e) {
		case aclUser:
			ranges = m.UIDs
		case aclGroup:
			ranges = m.GIDs
		default: // the owner, the group, the mask and others have no id
			continue
		}
		id := binary.LittleEndian.Uint32(e[4:])
		host, ok := find(ranges, id)
		if !ok {
			return nil, fmt.Errorf("access list names %d, which is not in the user namespace: %w", id, errdefs.ErrInvalid)
		}
		binary.LittleEndian.PutUint32(e[4:], host)
	}
	return mapped, nil
}
