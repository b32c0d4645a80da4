package stage1

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/cgroup"
	"github.com/gantry-cri/gantry/stage1/monitor"
	"github.com/gantry-cri/gantry/translate"
)

// appID is the id of the OCI container of one app of a pod with several: 64 hex
// digits like a pod's, and equal whenever the same pod runs the same app.
func appID(r pod.Record, app string) manifest.ID {
	return r.UUID.ID(sha256.Sum256([]byte(string(r.ID) + "/" + app)))
}

// startApp mounts the root filesystem, writes the OCI configuration, creates the
// container below a monitor and starts it. nil means that its process runs.
func (r *Runner) startApp(ctx context.Context, d *pod.Dir, p *plan, a *appPlan) error {
	if err := makeDirs(a.hostPaths); err != nil {
		return err
	}
	failpoint.Hit(failpoint.OverlayMounting)
	if err := overlay.Mount(r.cfg.Trees.Dir(), *a.overlay); err != nil {
		return err
	}
	failpoint.Hit(failpoint.OverlayMounted)
	spec, err := r.ociSpec(ctx, d, p, a)
	if err != nil {
		return err
	}
	if a.log != "" {
		if err := os.MkdirAll(filepath.Dir(a.log), 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	started, err := r.launch(ctx, d, p, a, spec)
	if err != nil {
		return err
	}
	return d.WriteStarted(a.name, started)
}

// launch creates a container below a monitor and starts its process.
func (r *Runner) launch(ctx context.Context, d *pod.Dir, p *plan, a *appPlan, spec *specs.Spec) (pod.Started, error) {
	bundle := r.pods.AppRunPath(d.UUID(), a.name, "bundle")
	raw, err := json.Marshal(spec)
	if err != nil {
		return pod.Started{}, fmt.Errorf("write OCI configuration: %w", err)
	}
	// 0600: the environment may hold secrets.
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		return pod.Started{}, fmt.Errorf("write OCI configuration: %w", err)
	}
	failpoint.Hit(failpoint.ConfigWritten)
	// Of the pod and not of the app: a terminal's socket lies in it, whose path is
	// bounded, and app names may be long.
	tmp := r.pods.RunPath(d.UUID(), "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return pod.Started{}, fmt.Errorf("make run directory: %w", err)
	}
	oomBefore := r.oomKillsAround(a.cgroup.Path)
	mon := r.cgroups.Monitor(r.cfg.Driver, a.id)
	m, err := monitor.Start(ctx, monitor.Spec{
		ID:             a.id,
		Name:           a.name,
		Conmon:         p.conmon,
		Runtime:        p.runtime,
		Bundle:         bundle,
		LogPath:        a.log,
		PIDFile:        r.pods.AppRunPath(d.UUID(), a.name, "init.pid"),
		MonitorPIDFile: r.pods.AppRunPath(d.UUID(), a.name, "monitor.pid"),
		ExitDir:        r.pods.AppRunPath(d.UUID(), a.name, "exit"),
		TmpDir:         tmp,
		Terminal:       a.stdin.tty,
		Stdin:          a.stdin.open,
		StdinOnce:      a.stdin.once,
		Place: func(ctx context.Context, pid int) error {
			return errors.Join(mon.Place(ctx, pid), r.cgroups.SetOwner(mon.Path, r.pods.RunDir()))
		},
		Kill: mon.Kill,
	})
	if err != nil {
		return pod.Started{}, err
	}
	failpoint.Hit(failpoint.ContainerCreated)
	if err := r.mark(p, a); err != nil {
		return pod.Started{}, err
	}
	group, err := r.groupOf(m.Init.PID, a.cgroup.Path)
	if err != nil {
		return pod.Started{}, err
	}
	if err := p.runtime.Start(ctx, a.id); err != nil {
		return pod.Started{}, err
	}
	failpoint.Hit(failpoint.ContainerStarted)
	return pod.Started{Init: m.Init, Monitor: m.Monitor, StartedAt: time.Now(), Cgroup: group, OOMBefore: oomBefore}, nil
}

// mark tells the doctor whose the cgroups are that the runtime and systemd have just
// made: the container's, and the slice that systemd makes with the first scope in it.
func (r *Runner) mark(p *plan, a *appPlan) error {
	groups := []string{a.cgroup.Path}
	if _, own := r.podParent("", p.host); own == filepath.Dir(a.cgroup.Path) {
		groups = append(groups, own)
	}
	for _, g := range groups {
		if err := r.cgroups.SetOwner(g, r.pods.RunDir()); err != nil {
			return err
		}
	}
	return nil
}

// groupOf is the group that holds a container's limits and statistics: path, or
// what the runtime made below it. Under systemd crun makes another group in the
// scope (crun(1), run.oci.systemd.subgroup), because it does not tell systemd the
// limits, and systemd overwrites those of a scope when it reloads.
func (r *Runner) groupOf(pid int, path string) (string, error) {
	if r.cgroups.Mode() != cgroup.V2 {
		return path, nil
	}
	group, err := r.cgroups.Of(pid)
	if err != nil {
		return "", err
	}
	if group != path && !strings.HasPrefix(group, path+"/") {
		return "", fmt.Errorf("process %d is in cgroup %s, not in %s: %w", pid, group, path, errdefs.ErrState)
	}
	return group, nil
}

// ociSpec gathers what the node and the mounted root filesystem say about an app
// and translates its manifest.
func (r *Runner) ociSpec(ctx context.Context, d *pod.Dir, p *plan, a *appPlan) (*specs.Spec, error) {
	needs, err := translate.NeedsOf(p.manifest, a.name)
	if err != nil {
		return nil, err
	}
	node, err := r.node(ctx, needs, a.overlay.Target)
	if err != nil {
		return nil, err
	}
	place, err := r.place(p, a)
	if err != nil {
		return nil, err
	}
	if place.Volumes, err = emptyVolumes(d, needs, p.ids); err != nil {
		return nil, err
	}
	spec, warnings, err := translate.ToOCI(p.manifest, a.name, p.sandbox, node, place)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		r.report(d.UUID(), "could not do quite what was asked", errors.New(w))
	}
	return spec, nil
}

func (r *Runner) place(p *plan, a *appPlan) (translate.Place, error) {
	place := translate.Place{
		SandboxID:   string(p.sandboxID),
		Rootfs:      a.overlay.Target,
		CgroupsPath: a.cgroup.OCI,
		ResolvConf:  r.pods.RunPath(p.host, "resolv.conf"),
		Hostname:    r.pods.RunPath(p.host, "hostname"),
		Hosts:       r.pods.RunPath(p.host, "hosts"),
		Shm:         r.pods.RunPath(p.host, "shm"),
	}
	var err error
	if p.sandbox == nil {
		place.SandboxID = ""
		place.UTSName = p.shared.namespaces.Hostname
	}
	place.Namespaces, err = r.joined(p)
	return place, err
}

// emptyVolumes makes the directories of the pod's empty volumes. They are the
// pod's, so apps that share a volume share its directory.
func emptyVolumes(d *pod.Dir, needs translate.Needs, ids *idmap.Map) (map[string]string, error) {
	dirs := map[string]string{}
	for _, v := range needs.Volumes {
		if v.Seed != "" {
			continue // stays in the root filesystem, where the image put its content
		}
		path := d.Path("volumes", v.Name)
		dirs[v.Name] = path
		if err := makeVolume(path, v, ids); err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return dirs, nil
}

func makeVolume(path string, v translate.EmptyVolume, ids *idmap.Map) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Under another name first, so that a volume that exists is one with its attributes.
	fresh := path + ".new"
	if err := os.Mkdir(fresh, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	failpoint.Hit(failpoint.VolumeMade)
	var mode uint32
	if _, err := fmt.Sscanf(v.Mode, "%o", &mode); err != nil {
		return fmt.Errorf("mode %q: %w", v.Mode, err)
	}
	uid, gid := v.UID, v.GID
	if ids != nil {
		u, g, err := ids.Owner(uint32(uid), uint32(gid)) //nolint:gosec // ids have 32 bits
		if err != nil {
			return err
		}
		uid, gid = int(u), int(g)
	}
	if err := os.Chown(fresh, uid, gid); err != nil {
		return err
	}
	if err := os.Chmod(fresh, os.FileMode(mode&0o777)|sticky(mode)); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// sticky translates the bits above the permissions, which Go keeps elsewhere.
func sticky(mode uint32) (m os.FileMode) {
	for bit, flag := range map[uint32]os.FileMode{0o1000: os.ModeSticky, 0o2000: os.ModeSetgid, 0o4000: os.ModeSetuid} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

func makeDirs(paths []string) error {
	for _, path := range paths {
		_, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.MkdirAll(path, 0o755)
		}
		if err != nil {
			return fmt.Errorf("source of a mount: %w", err)
		}
	}
	return nil
}
