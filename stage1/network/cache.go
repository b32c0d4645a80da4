package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage1/namespace"
)

// Cached lists the container IDs for which ADD was called and no DEL has succeeded
// since, in lexical order.
func (n *Network) Cached() ([]string, error) {
	entries, err := os.ReadDir(n.cacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list CNI cache: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// CachePath is where the cache of a pod lies.
func (n *Network) CachePath(containerID string) string { return filepath.Join(n.cacheDir, containerID) }

// Remembered is the attachment that the cache of a container ID tells of. Where an ADD
// was killed before its result was written, or a power cut tore it, it is made from
// today's configuration. ErrNotFound says that there is no cache of it.
func (n *Network) Remembered(containerID string) (Attachment, error) {
	dir := n.CachePath(containerID)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return Attachment{}, fmt.Errorf("CNI cache of %s: %w", containerID, errdefs.ErrNotFound)
	} else if err != nil {
		return Attachment{}, fmt.Errorf("CNI cache of %s: %w", containerID, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "results", "*"))
	if err != nil {
		return Attachment{}, fmt.Errorf("CNI cache of %s: %w", containerID, err)
	}
	for _, f := range files {
		if a, err := readCached(f); err == nil {
			a.CacheDir, a.BinDirs = dir, slices.Clone(n.binDirs)
			return a, nil
		}
	}
	c, err := n.Load()
	if err != nil {
		return Attachment{}, fmt.Errorf("CNI cache of %s has no result that can be read: %w", containerID, err)
	}
	return Attachment{
		Network: c.Name, File: c.File, Config: c.List, BinDirs: slices.Clone(n.binDirs),
		ContainerID: containerID, IfName: Interface, CacheDir: dir,
	}, nil
}

// cached is libcni's file of a result, as far as DEL needs it.
type cached struct {
	Kind           string                     `json:"kind"`
	ContainerID    string                     `json:"containerId"`
	Config         []byte                     `json:"config"`
	IfName         string                     `json:"ifName"`
	Network        string                     `json:"networkName"`
	NetNS          string                     `json:"netns"`
	Args           [][2]string                `json:"cniArgs"`
	CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs"`
}

func readCached(file string) (Attachment, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Attachment{}, err
	}
	var c cached
	if err := json.Unmarshal(raw, &c); err != nil {
		return Attachment{}, fmt.Errorf("%s: %w", file, err)
	}
	if c.Kind != libcni.CNICacheV1 || c.ContainerID == "" || len(c.Config) == 0 {
		return Attachment{}, fmt.Errorf("%s: not a result of libcni", file)
	}
	return Attachment{
		Network: c.Network, File: file, Config: c.Config, ContainerID: c.ContainerID, NetNS: c.NetNS,
		IfName: c.IfName, Args: c.Args, Capabilities: c.CapabilityArgs,
	}, nil
}

// Within says whether an attachment is of this container and of a network namespace
// below a directory: the mark of a pod. One that was made from the configuration knows no
// namespace, and its cache directory is the mark.
func (a Attachment) Within(containerID, dir string) bool {
	return a.ContainerID == containerID && (a.NetNS == "" || strings.HasPrefix(a.NetNS, dir+"/"))
}

// Release is Del for a pod that nobody keeps any more: ErrBusy says that a process lives
// in its network namespace, whose address must not go to another.
func (n *Network) Release(ctx context.Context, a Attachment) error {
	used, err := namespace.InUse(a.NetNS, namespace.Net)
	if err != nil {
		return fmt.Errorf("release network %q: %w", a.Network, err)
	}
	if used {
		return fmt.Errorf("release network %q: a process lives in %s: %w", a.Network, a.NetNS, errdefs.ErrBusy)
	}
	return n.Del(ctx, a)
}

// forget removes the cache when DEL has succeeded. One that plugins still hold, which
// a killed ADD has left and DEL did not wait for any longer, stays and is released later.
func (a Attachment) forget() error {
	lock, err := durable.TryLock(filepath.Join(a.CacheDir, addLock), durable.Exclusive)
	if errors.Is(err, errdefs.ErrBusy) {
		return nil
	}
	if err == nil {
		defer durable.Unlock(lock)
	} else if !errors.Is(err, fs.ErrNotExist) { // without the file no ADD ever ran
		return fmt.Errorf("forget result: %w", err)
	}
	if err := os.RemoveAll(a.CacheDir); err != nil {
		return fmt.Errorf("forget result: %w", err)
	}
	return nil
}
