package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/idmap"
)

// trialName is the entry in tmp/ that a trial works in. It has one name, so
// that the next trial finds what one that was killed left.
const trialName = "overlay-trial"

// trialFile is in the root of the tree that a trial makes.
const trialFile = "file"

// trialMount makes an overlay mount within tmp. refused is the kernel's answer;
// err says that it could not be asked.
func trialMount(ctx context.Context, tmp string) (refused, err error) {
	return withTrial(ctx, tmp, func(p Plan) error { return mountLower(filepath.Dir(p.Target), p.Lower, p) })
}

// trialMapped is trialMount with mapped owners, of a tree within tmp and others below it.
func trialMapped(ctx context.Context, tmp string, trees []string) (refused, err error) {
	const shift = 1 << 16
	ids := []specs.LinuxIDMapping{{HostID: shift, Size: shift}}
	return withTrial(ctx, tmp, func(p Plan) error {
		p.Lower, p.IDs = append(p.Lower, trees...), &idmap.Map{UIDs: ids, GIDs: ids}
		if err := mountLower(filepath.Dir(p.Target), p.Lower, p); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(p.Target, trialFile), &st); err != nil {
			return os.NewSyscallError("lstat", err)
		}
		if st.Uid != shift || st.Gid != shift {
			return fmt.Errorf("owner 0:0 is shown as %d:%d, not as %d:%d", st.Uid, st.Gid, shift, shift)
		}
		return nil
	})
}

// withTrial makes what a mount needs within tmp, has it tried, and takes all away. The
// mount lives in a mount namespace that ends with the trial, however that ends.
func withTrial(ctx context.Context, tmp string, try func(Plan) error) (refused, err error) {
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, durable.NoSpace(err)
	}
	dir := filepath.Join(tmp, trialName)
	lock, err := durable.LockFile(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir), os.Remove(lock.Name()))
		durable.Unlock(lock)
	}()
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	p := Plan{
		Lower:  []string{"tree"},
		Upper:  filepath.Join(dir, "upper"),
		Work:   filepath.Join(dir, "work"),
		Target: filepath.Join(dir, "merged"),
	}
	root := rootOf(dir, p.Lower[0])
	for _, d := range []string{root, p.Upper, p.Work, p.Target} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, durable.NoSpace(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, trialFile), nil, 0o600); err != nil {
		return nil, durable.NoSpace(err)
	}
	return onThread(func() error {
		if err := leaveMounts(); err != nil {
			return err
		}
		return errors.Join(try(p), Unmount(p.Target))
	}), nil
}
