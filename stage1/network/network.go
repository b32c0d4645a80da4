// Package network attaches pods to the node's network by CNI: it finds the
// configuration, plans an attachment as a value that can be written down before
// anything happens, and runs the plugins' ADD and DEL on it.
//
// DEL needs nothing but the [Attachment]: neither today's configuration, nor the
// network namespace, nor the same process. The configuration directory is read when it is
// used (for Status and for each Plan: a few small files) and never cached,
// so a configuration that the node's network add-on writes is seen at once.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage1/namespace"
)

// ErrNotReady says that the node has no usable network configuration (yet).
var ErrNotReady = errors.New("network is not ready")

// Interface is the name of a pod's interface: the kubelet and its tools expect it.
const Interface = "eth0"

// DefaultConfDir is where network add-ons leave their configuration.
const DefaultConfDir = "/etc/cni/net.d"

// DefaultBinDirs are where distributions and network add-ons put the plugins.
func DefaultBinDirs() []string { return []string{"/usr/lib/cni", "/opt/cni/bin"} }

// Config says where CNI's files are. The zero value is the usual places.
type Config struct {
	// ConfDir holds *.conflist, *.conf and *.json; empty: DefaultConfDir.
	ConfDir string
	// BinDirs are searched for plugins in this order; empty: DefaultBinDirs.
	BinDirs []string
	// CacheDir holds what libcni remembers for DEL, a directory a pod.
	// It should survive a boot as the attachments do. Without it no pod can be attached.
	CacheDir string
	// Adds bounds how many ADDs run at once; 0: the number of cores. More
	// would only contend for the kernel's RTNL and xtables locks.
	Adds int
}

// Network runs the plugins. It is safe for concurrent use.
type Network struct {
	confDir    string
	binDirs    []string
	cacheDir   string
	adds, dels chan struct{}
}

// New returns a Network; it looks at no file yet.
func New(c Config) *Network {
	if c.ConfDir == "" {
		c.ConfDir = DefaultConfDir
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = DefaultBinDirs()
	}
	if c.Adds <= 0 {
		c.Adds = runtime.NumCPU()
	}
	return &Network{
		confDir: c.ConfDir, binDirs: c.BinDirs, cacheDir: c.CacheDir,
		adds: make(chan struct{}, c.Adds),
		// Wider: a stop must not wait for the plugins of others that hang.
		dels: make(chan struct{}, max(16, 4*c.Adds)),
	}
}

// Result is what a pod got. It is written down as JSON, so that the address is known after a restart.
type Result struct {
	// IPs are the pod's addresses in the plugin's order; the first is the primary.
	IPs       []netip.Addr `json:"ips"`
	Interface string       `json:"interface"`
	MAC       string       `json:"mac,omitempty"`
	// Raw is the CNI result, version 1.0.0 or what the configuration says.
	Raw json.RawMessage `json:"raw,omitempty"`
}

// Add runs the plugins' ADD. Success means at least one address. After an error, the end of
// ctx included, something may be left: call Del with the same attachment. A plugin that
// does not end by ctx's deadline is killed with all that it started, and the error names it.
func (n *Network) Add(ctx context.Context, a Attachment) (Result, error) {
	release, err := acquire(ctx, n.adds)
	if err != nil {
		return Result{}, fmt.Errorf("attach to network %q: waiting for other pods' plugins: %w", a.Network, err)
	}
	defer release()
	list, err := a.list()
	if err != nil {
		return Result{}, fmt.Errorf("attach to network %q: %w", a.Network, err)
	}
	lock, err := a.lockAdd()
	if err != nil {
		return Result{}, fmt.Errorf("attach to network %q: lock: %w", a.Network, err)
	}
	// For all who hold it: a plugin that ended well may have left a process behind.
	defer durable.Unlock(lock)
	got, err := n.cni(a, lock).AddNetworkList(ctx, list, a.runtimeConf(a.NetNS))
	if err != nil {
		return Result{}, fmt.Errorf("attach to network %q: %w", a.Network, inner(err))
	}
	res, err := toResult(got, a.IfName)
	if err != nil {
		return Result{}, fmt.Errorf("attach to network %q: %w", a.Network, err)
	}
	return res, nil
}

// Del runs the plugins' DEL with the configuration of the attachment. It is
// idempotent: nil means that the plugins keep nothing for the pod, also when ADD never ran,
// when it is called again and when the network namespace is gone (after a boot). The zero
// Attachment needs no work. On an error call it again later.
func (n *Network) Del(ctx context.Context, a Attachment) error {
	if len(a.Config) == 0 {
		return nil
	}
	release, err := acquire(ctx, n.dels)
	if err != nil {
		return fmt.Errorf("detach from network %q: waiting for other pods' plugins: %w", a.Network, err)
	}
	defer release()
	list, err := a.list()
	if err != nil {
		return fmt.Errorf("detach from network %q: %w", a.Network, err)
	}
	if err := a.awaitAdd(ctx); err != nil {
		return fmt.Errorf("detach from network %q: %w", a.Network, err)
	}
	netns := liveNetNS(a.NetNS)
	err = n.cni(a, nil).DelNetworkList(ctx, list, a.runtimeConf(netns))
	if err != nil && netns != "" && liveNetNS(netns) == "" && ctx.Err() == nil {
		// The namespace went away under the plugin; without one it has less to do.
		err = n.cni(a, nil).DelNetworkList(ctx, list, a.runtimeConf(""))
	}
	if err != nil {
		return fmt.Errorf("detach from network %q: %w", a.Network, inner(err))
	}
	if err := a.forget(); err != nil {
		return fmt.Errorf("detach from network %q: %w", a.Network, err)
	}
	return nil
}

// liveNetNS is the path while a namespace is there, else what CNI takes for "none left".
func liveNetNS(path string) string {
	if ok, err := namespace.IsPinned(path); err != nil || !ok {
		return ""
	}
	return path
}

// cni looks for plugins first where they were when the attachment was planned, then where
// they are today. lock, if there is one, is handed to them.
func (n *Network) cni(a Attachment, lock *os.File) *libcni.CNIConfig {
	dirs := append([]string{}, a.BinDirs...)
	return libcni.NewCNIConfigWithCacheDir(append(dirs, n.binDirs...), a.CacheDir, &runner{lock: lock})
}

func acquire(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func toResult(r types.Result, ifName string) (Result, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return Result{}, fmt.Errorf("encode the plugins' result: %w", err)
	}
	cur, err := types100.NewResultFromResult(r)
	if err != nil {
		return Result{}, fmt.Errorf("read the plugins' result: %w", err)
	}
	res := Result{Interface: ifName, Raw: raw}
	for _, i := range cur.Interfaces {
		if i.Name == ifName && i.Sandbox != "" {
			res.MAC = i.Mac
		}
	}
	for _, ip := range cur.IPs {
		// An address of an interface on the node's side is not the pod's.
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(cur.Interfaces) && cur.Interfaces[*i].Sandbox == "" {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			res.IPs = append(res.IPs, addr.Unmap())
		}
	}
	if len(res.IPs) == 0 {
		return Result{}, errors.New("the plugins gave the pod no address")
	}
	return res, nil
}
