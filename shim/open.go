package shim

import (
	"cmp"
	"path/filepath"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/credential"
	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/readonly"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
	"github.com/gantry-cri/gantry/stage1"
	"github.com/gantry-cri/gantry/stage1/network"
)

// spoolAbove is a size that takes a slow line long, and more room than most layers.
const spoolAbove = 256 << 20

// Open makes the pipeline and the runner of a configuration: what the daemon and
// the command line both work with, so that they cannot differ. It starts nothing
// and needs no closing. report is told of what went wrong and was put off; it may
// be nil.
func Open(cfg Config, report func(manifest.UUID, string, error)) (*stage0.Pipeline, *stage1.Runner, error) {
	p, err := OpenPipeline(cfg)
	if err != nil {
		return nil, nil, err
	}
	r, err := stage1.New(stage1.Config{
		Pods: p.Pods, Trees: p.Trees, RunDir: cfg.RunDir,
		Driver: cfg.CgroupDriver, Runtime: cfg.Runtime, Runtimes: cfg.Runtimes, Conmon: cfg.Conmon, Init: cfg.Init,
		Network: cfg.Network(),
		Report:  report,
	})
	if err != nil {
		return nil, nil, err
	}
	return p, r, nil
}

// OpenPipeline is Open for those who run nothing.
func OpenPipeline(cfg Config) (*stage0.Pipeline, error) {
	pods, err := pod.Open(cfg.Dir, cfg.RunDir)
	if err != nil {
		return nil, err
	}
	readOnly, err := readonly.Open(cfg.Dir, cfg.ReadOnlyStores)
	if err != nil {
		return nil, err
	}
	images, err := store.Open(cfg.Dir, readOnly...)
	if err != nil {
		return nil, err
	}
	trees, err := tree.Open(cfg.Dir, readOnly...)
	if err != nil {
		return nil, err
	}
	trees.Limits = cfg.LayerLimits
	site := overlay.Site{Dir: cfg.Dir, Known: filepath.Join(cfg.RunDir, "overlay")}
	return &stage0.Pipeline{
		Images: images, Trees: trees, Pods: pods, Source: Registry(cfg), Overlay: site,
		Users:        idmap.Pool{Dir: filepath.Join(cfg.Dir, "ids")},
		FetchTimeout: cfg.PullTimeout.Duration, SpoolAbove: cmp.Or(cfg.SpoolAbove, spoolAbove),
		MaxDownloads: cfg.MaxConcurrentDownloads, MaxDownloadsTotal: cfg.MaxConcurrentDownloadsTotal,
	}, nil
}

// Registry is where the images of a configuration come from.
func Registry(cfg Config) *fetch.Registry {
	c := fetch.Config{HostsDir: cfg.RegistryConfigDir, IdleTimeout: cfg.PullIdleTimeout.Duration}
	c.Credentials = func(repository string) credential.Source {
		var sources []credential.Source
		if cfg.RegistryAuthFile != "" {
			sources = append(sources, credential.NewFile(cfg.RegistryAuthFile).For(repository))
		}
		return credential.First(append(sources, credential.Rkt(cfg.RegistryAuthDirs...))...)
	}
	return fetch.NewRegistry(c)
}

// Network says where CNI's files are. What libcni remembers lies beside the pods and not
// in their directories: it must be there when a pod's directory is not.
func (c Config) Network() network.Config {
	return network.Config{ConfDir: c.CNIConfDir, BinDirs: c.CNIBinDirs, CacheDir: filepath.Join(c.Dir, "cni")}
}
