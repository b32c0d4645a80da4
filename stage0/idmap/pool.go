package idmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// The ranges that a Pool hands out: what systemd.io/UIDS-GIDS leaves between the ids that
// systemd-nspawn takes for its containers and those of foreign images.
const (
	firstID   = 0x70000000
	endID     = 0x7ffe0000
	rangeSize = 1 << 16
	rangeNum  = (endID - firstID) / rangeSize
)

// Pool hands out ranges of the node's ids, each to one owner at a time. What an owner
// that is gone had is free again; nobody gives anything back. Processes share it.
type Pool struct {
	// Dir has a file for each range that was taken, named by its first id, with the
	// owner's name in it. It is made when it is missing.
	Dir string
}

// Take takes 65536 uids and as many gids for an owner, who is there already, and survives
// what they are to survive. lives says whether another is still there. ErrBusy says
// that nothing is left.
func (p Pool) Take(ctx context.Context, owner string, s durable.Survival, lives func(owner string) (bool, error)) (Map, error) {
	first, err := p.take(ctx, owner, s, lives)
	if err != nil {
		return Map{}, fmt.Errorf("take ids for a user namespace: %w", err)
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: rangeSize}}
	return Map{UIDs: ids, GIDs: ids}, nil
}

func (p Pool) take(ctx context.Context, owner string, s durable.Survival, lives func(owner string) (bool, error)) (uint32, error) {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return 0, durable.NoSpace(err)
	}
	lock, err := durable.Lock(ctx, p.Dir, durable.Exclusive)
	if err != nil {
		return 0, err
	}
	defer durable.Unlock(lock)
	// From somewhere, so that what was just left is not taken at once: files elsewhere may
	// still have its owners.
	start := rand.Uint32N(rangeNum) //nolint:gosec // nobody is kept from guessing
	for i := range uint32(rangeNum) {
		first := firstID + (start+i)%rangeNum*rangeSize
		path := filepath.Join(p.Dir, strconv.FormatUint(uint64(first), 10))
		was, err := os.ReadFile(path)
		taken := err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if taken {
			if taken, err = lives(strings.TrimSpace(string(was))); err != nil {
				return 0, err
			}
		}
		if !taken {
			return first, durable.WriteFile(path, []byte(owner+"\n"), 0o600, s)
		}
	}
	return 0, fmt.Errorf("all %d ranges are taken: %w", rangeNum, errdefs.ErrBusy)
}
