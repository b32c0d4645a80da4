package manifest

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// UUID names a pod on disk: 32 lower-case hex digits with dashes, random (RFC 9562, version 4).
type UUID string

// ID is how CRI spells a pod: 64 lower-case hex digits, the 32 of its UUID and
// then the first 32 of the SHA-256 of the request that made it.
type ID string

// Request is the SHA-256 of what was asked for: equal for equal requests.
type Request [32]byte

// NewUUID returns a fresh random UUID.
func NewUUID() (UUID, error) {
	u, err := uuid.NewRandom()
	if err != nil {
		return "", fmt.Errorf("allocate UUID: %w", err)
	}
	return UUID(u.String()), nil
}

// ParseUUID accepts the canonical spelling alone.
func ParseUUID(s string) (UUID, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.String() != s {
		return "", fmt.Errorf("%q is not a pod UUID: %w", s, errdefs.ErrInvalid)
	}
	return UUID(s), nil
}

// Hex returns the 32 hex digits of the UUID, without dashes.
func (u UUID) Hex() string { return strings.ReplaceAll(string(u), "-", "") }

// ID joins the UUID and the request into the CRI spelling.
func (u UUID) ID(r Request) ID {
	return ID(u.Hex() + hex.EncodeToString(r[:])[:32])
}

// UUID returns the pod's UUID, the first half of the id.
func (id ID) UUID() (UUID, error) {
	if len(id) != 64 {
		return "", fmt.Errorf("%q is not a pod id: want 64 hex digits: %w", string(id), errdefs.ErrInvalid)
	}
	raw, err := hex.DecodeString(string(id[:32]))
	if err != nil {
		return "", fmt.Errorf("%q is not a pod id: %w", string(id), errdefs.ErrInvalid)
	}
	u, err := uuid.FromBytes(raw)
	if err != nil {
		return "", fmt.Errorf("%q is not a pod id: %w", string(id), errdefs.ErrInvalid)
	}
	return UUID(u.String()), nil
}
