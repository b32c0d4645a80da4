package translate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// SandboxRequest returns the identity of a RunPodSandbox call: equal for equal
// requests, whatever the order of maps on the wire.
func SandboxRequest(c *runtimeapi.PodSandboxConfig, handler string) (manifest.Request, error) {
	return request([]byte("sandbox"), []byte(handler), c)
}

// ContainerRequest returns the identity of a CreateContainer call in a sandbox.
func ContainerRequest(sandbox manifest.UUID, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) (manifest.Request, error) {
	return request([]byte("container"), []byte(sandbox), c, s)
}

// request hashes a kind, a qualifier and messages, each with its length before it.
func request(kind, qualifier []byte, messages ...proto.Message) (manifest.Request, error) {
	parts := [][]byte{kind, qualifier}
	for _, m := range messages {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return manifest.Request{}, fmt.Errorf("encode the request: %w: %w", errdefs.ErrInvalid, err)
		}
		parts = append(parts, raw)
	}
	h := sha256.New()
	for _, p := range parts {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(p)))
		h.Write(length[:])
		h.Write(p)
	}
	return manifest.Request(h.Sum(nil)), nil
}

// UnknownFields returns the places of fields that this version's API does not
// have, each once and sorted, as "linux.security_context#99". They are ignored.
func UnknownFields(m proto.Message) []string {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	var found []string
	collectUnknown(m.ProtoReflect(), "", &found)
	slices.Sort(found)
	return slices.Compact(found)
}

func collectUnknown(m protoreflect.Message, path string, found *[]string) {
	for raw := m.GetUnknown(); len(raw) > 0; {
		number, _, n := protowire.ConsumeField(raw)
		if n <= 0 {
			break
		}
		*found = append(*found, fmt.Sprintf("%s#%d", path, number))
		raw = raw[n:]
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		below := string(fd.Name())
		if path != "" {
			below = path + "." + below
		}
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(_ protoreflect.MapKey, item protoreflect.Value) bool {
				collectUnknown(item.Message(), below, found)
				return true
			})
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				collectUnknown(v.List().Get(i).Message(), below, found)
			}
		default:
			collectUnknown(v.Message(), below, found)
		}
		return true
	})
}

// encodeMessage writes a message as protojson: enums as numbers, because their
// names change between versions of the API, and compact, because protojson puts
// random spaces in.
func encodeMessage(m proto.Message) (json.RawMessage, error) {
	raw, err := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the CRI message: %w: %w", errdefs.ErrInvalid, err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, fmt.Errorf("encode the CRI message: %w", err)
	}
	return b.Bytes(), nil
}

// decodeMessage reads what encodeMessage wrote. A field that this version does
// not know is refused: it came from a newer one and says something that must hold.
func decodeMessage(raw json.RawMessage, m proto.Message) error {
	if err := protojson.Unmarshal(raw, m); err != nil {
		return fmt.Errorf("isolator %s: %w: %w", manifest.CRIName, errdefs.ErrInvalid, err)
	}
	return nil
}

// checkText refuses messages with strings that are not UTF-8: no JSON can hold them.
func checkText(m proto.Message) error {
	if _, err := proto.Marshal(m); err != nil {
		return fmt.Errorf("encode the request: %w: %w", errdefs.ErrInvalid, err)
	}
	return nil
}
