package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage1/namespace"
	"github.com/gantry-cri/gantry/stage1/network"
	"github.com/gantry-cri/gantry/translate"
)

const (
	readyFile = "ready" // its coming and going in a sandbox's run directory is READY
	// settleEvents is how long events are gathered, so that a pod that passes
	// three places in a row is read once.
	settleEvents = 10 * time.Millisecond
	// watchAgain is the pause before an exit watch that failed is tried again.
	watchAgain = time.Second
	// settleTimeout bounds what the first answer waits for.
	settleTimeout = 10 * time.Second
	settlePause   = 100 * time.Millisecond
)

// PodReader reads pods from disk without a lock. *pod.Pods is one.
type PodReader interface {
	Load(u manifest.UUID) (*pod.Pod, error)
	List() ([]manifest.UUID, error)
	Resources(u manifest.UUID, v any) error
	PlaceDir(pl pod.Place) string
	RunPath(u manifest.UUID, elem ...string) string
}

// Inspector tells what stage1 made for a pod that runs. *stage1.Runner is one.
type Inspector interface {
	// Network is what the sandbox was given; the zero value in the node's network.
	Network(u manifest.UUID) (network.Result, error)
	// Namespaces are the paths of the pinned namespaces.
	Namespaces(u manifest.UUID) (map[namespace.Kind]string, error)
	// Spec is the OCI configuration that an app's runtime was given.
	Spec(u manifest.UUID, app string) (*specs.Spec, error)
	// Watch delivers the exit of an app once its record is on disk and its output
	// is drained, at once if that is so already. The channel is closed without a
	// value when the context ends.
	Watch(ctx context.Context, u manifest.UUID, app string) (<-chan pod.Exit, error)
	// WatchInit closes the channel when a sandbox's init has ended; nil without one.
	WatchInit(ctx context.Context, u manifest.UUID) (<-chan struct{}, error)
}

// entry is what the index knows about one pod. Entries are never changed, only
// replaced: who holds one holds a snapshot.
type entry struct {
	facts
	state
}

// facts never change in a pod's life and are read once.
type facts struct {
	record    pod.Record
	sandbox   *runtimeapi.PodSandboxConfig // of a sandbox
	handler   string                       // of a sandbox
	container *runtimeapi.ContainerConfig  // of a container
	key       string                       // of what holds the metadata; see join.go
}

// state is read again whenever something happens to the pod.
type state struct {
	place     pod.Place
	phase     pod.Phase
	word      pod.State // rkt's
	started   pod.Started
	exit      *pod.Exit
	resources *runtimeapi.LinuxContainerResources // as set after the start; nil before
	network   network.Result
	user      *runtimeapi.LinuxContainerUser
	// ghost says that the sandbox is gone and kept for its containers alone.
	ghost bool
	// wasReady says that the sandbox is ready, or was in this boot. One that never
	// was has a maker that died while it made it.
	wasReady bool
}

func (e *entry) id() string          { return string(e.record.ID) }
func (e *entry) uuid() manifest.UUID { return e.record.UUID }

// app is the one app of a container's pod.
func (e *entry) app() pod.AppRecord {
	if len(e.record.Apps) == 0 {
		return pod.AppRecord{}
	}
	return e.record.Apps[0]
}

// index keeps the pods of the data directory in memory. Disk is the truth: the
// index is told by inotify, by the server after its own calls and by exit
// watches which pod to read again, and answers every list alone.
type index struct {
	ctx       context.Context //nolint:containedctx // the daemon's life, which exit watches end with
	log       klog.Logger
	pods      PodReader
	inspector Inspector
	watcher   *fsnotify.Watcher
	reading   [64]sync.Mutex // by hash of the UUID: one refresh of a pod at a time
	tasks     sync.WaitGroup

	mu       sync.RWMutex // protects what follows
	complete bool
	entries  map[manifest.UUID]*entry
	keys     map[string]manifest.UUID
	// members are the containers of a sandbox.
	members map[manifest.UUID]map[manifest.UUID]bool
	// watched are the containers whose exit is waited for, and the sandboxes whose
	// run directory is watched.
	watched map[manifest.UUID]bool
}

// newIndex returns an index that is not complete before fill has returned.
func newIndex(ctx context.Context, pods PodReader, inspector Inspector) (*index, error) {
	w, err := fsnotify.NewBufferedWatcher(4096)
	if err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	x := &index{
		ctx: ctx, log: klog.FromContext(ctx), pods: pods, inspector: inspector, watcher: w,
		entries: map[manifest.UUID]*entry{},
		keys:    map[string]manifest.UUID{},
		members: map[manifest.UUID]map[manifest.UUID]bool{},
		watched: map[manifest.UUID]bool{},
	}
	return x, nil
}

// fill watches first and reads then, so that nothing slips between, and declares
// the index complete.
func (x *index) fill() error {
	for _, pl := range pod.Places {
		if err := x.watcher.Add(x.pods.PlaceDir(pl)); err != nil {
			return fmt.Errorf("watch pods in %s: %w", pl, err)
		}
	}
	x.tasks.Go(x.follow)
	if err := x.readAll(); err != nil {
		return err
	}
	x.settleStarts()
	x.mu.Lock()
	x.complete = true
	x.mu.Unlock()
	return nil
}

// settleStarts brings starts to their end that were cut short with the daemon
// before: a watch takes a process over that runs, and records the failure of one
// that does not. What cannot be settled soon is watched on.
func (x *index) settleStarts() {
	ctx, cancel := context.WithTimeout(x.ctx, settleTimeout)
	defer cancel()
	var g errgroup.Group
	for _, e := range x.all() {
		if e.phase == pod.Starting && e.record.Owner == pod.OwnerCRI {
			g.Go(func() error {
				x.settleStart(ctx, e)
				return nil
			})
		}
	}
	_ = g.Wait() // none of them fails
}

func (x *index) settleStart(ctx context.Context, e *entry) {
	u, app := e.uuid(), e.app().Name
	for {
		c, err := x.inspector.Watch(ctx, u, app)
		if err == nil {
			<-c
		}
		x.refresh(u)
		if e := x.get(u); e == nil || e.phase != pod.Starting {
			return
		}
		// The runtime of the daemon before may be at work on it still, and its state
		// unreadable meanwhile.
		select {
		case <-ctx.Done():
			x.log.Error(err, "A start that was cut short is not settled yet", "pod", u)
			x.mu.Lock()
			x.watched[u] = true
			x.mu.Unlock()
			x.tasks.Go(func() { x.awaitExit(u, app) })
			return
		case <-time.After(settlePause):
		}
	}
}

// close stops watching; the context given to newIndex must have ended.
func (x *index) close() error {
	err := x.watcher.Close()
	x.tasks.Wait()
	return err
}

// readAll reads every pod. ErrUnsupported says that some were written by a later
// version: they may run, so a list without them is not the truth.
func (x *index) readAll() error {
	uuids, err := x.pods.List()
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(4)
	for _, u := range uuids {
		g.Go(func() error {
			err := x.reread(u)
			if errors.Is(err, errdefs.ErrUnsupported) {
				return fmt.Errorf("pods of a later version, which Gantry has to be again: %w", err)
			}
			x.report(u, err)
			return nil
		})
	}
	return g.Wait()
}

// follow turns events into refreshes until the watcher is closed.
func (x *index) follow() {
	changed := map[manifest.UUID]bool{}
	timer := time.NewTimer(settleEvents)
	timer.Stop()
	for {
		select {
		case ev, ok := <-x.watcher.Events:
			if !ok {
				return
			}
			if u, ok := x.concerns(ev); ok {
				if len(changed) == 0 {
					timer.Reset(settleEvents)
				}
				changed[u] = true
			}
		case err, ok := <-x.watcher.Errors:
			if !ok {
				return
			}
			x.lostTrack(err)
		case <-timer.C:
			for u := range changed {
				x.refresh(u)
			}
			clear(changed)
		}
	}
}

// lostTrack reads everything again, because events were lost.
func (x *index) lostTrack(err error) {
	x.log.Error(err, "Lost track of the pod directories, reading all")
	if err := x.readAll(); err != nil {
		x.log.Error(err, "Reading all pods failed")
	}
	// Pods that have gone meanwhile are in no directory any more.
	for _, e := range x.all() {
		x.refresh(e.uuid())
	}
}

// concerns says which pod an event is about, and whether it tells anything that
// the index does not know: the server's own moves arrive here as well.
func (x *index) concerns(ev fsnotify.Event) (manifest.UUID, bool) {
	dir, base := filepath.Split(ev.Name)
	dir = filepath.Base(dir)
	if base == readyFile {
		u, err := manifest.ParseUUID(dir)
		return u, err == nil
	}
	u, err := manifest.ParseUUID(base)
	if err != nil {
		return "", false
	}
	x.mu.RLock()
	e := x.entries[u]
	x.mu.RUnlock()
	here := e != nil && !e.ghost && e.place == pod.Place(dir)
	if ev.Has(fsnotify.Create) {
		return u, !here && pod.Place(dir) != pod.InPrepare
	}
	return u, here && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename))
}

// refresh reads a pod from disk and puts what it found into the index. A pod
// that cannot be read costs itself, not the list: it is said and left out.
func (x *index) refresh(u manifest.UUID) { x.report(u, x.reread(u)) }

func (x *index) report(u manifest.UUID, err error) {
	if err != nil {
		x.log.Error(err, "Pod cannot be read and is not listed", "pod", u)
	}
}

// reread is refresh that returns why a pod cannot be read.
func (x *index) reread(u manifest.UUID) error {
	h := fnv.New32a()
	h.Write([]byte(u))
	lock := &x.reading[h.Sum32()%uint32(len(x.reading))]
	lock.Lock()
	defer lock.Unlock()

	p, err := x.pods.Load(u)
	if err == nil {
		var e *entry
		if e, err = x.read(p); err == nil {
			x.put(e)
			return nil
		}
	}
	x.drop(u)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}

// read makes an entry of what lies on disk. ErrNotFound says that the pod is in
// no list: in the making, or being deleted.
func (x *index) read(p *pod.Pod) (*entry, error) {
	u := p.Record.UUID
	old := x.get(u)
	e := &entry{}
	if old != nil {
		e.facts = old.facts
	} else if err := e.readFacts(p); err != nil {
		return nil, err
	}
	e.place, e.word = p.Place, p.State()
	if p.Record.Kind == pod.KindContainer && len(p.Record.Apps) == 1 {
		app := e.app().Name
		e.phase = p.AppPhase(app)
		e.started = p.Started[app]
		if exit, ok := p.Exits[app]; ok {
			e.exit = &exit
		}
	} else {
		e.phase = p.SandboxPhase()
	}
	if e.phase == pod.Unlisted {
		return nil, fmt.Errorf("pod %s is in %q: %w", u, p.Place, errdefs.ErrNotFound)
	}
	if e.record.Owner == pod.OwnerCRI {
		e.wasReady = p.WasReady || old != nil && old.wasReady
		x.readRun(e, old)
	}
	return e, nil
}

// readFacts reads what was asked for. Pods of the command line are only counted.
func (f *facts) readFacts(p *pod.Pod) error {
	f.record = p.Record
	if f.record.Owner != pod.OwnerCRI {
		return nil
	}
	pm, err := p.Manifest()
	if err != nil {
		return err
	}
	switch f.record.Kind {
	case pod.KindSandbox:
		if f.sandbox, f.handler, err = translate.SandboxConfig(pm); err != nil {
			return fmt.Errorf("pod %s: %w", f.record.UUID, err)
		}
		f.key = sandboxKey(f.sandbox.GetMetadata())
	case pod.KindContainer:
		if f.container, err = translate.ContainerConfig(pm); err != nil {
			return fmt.Errorf("pod %s: %w", f.record.UUID, err)
		}
		f.key = containerKey(f.record.Sandbox, f.container.GetMetadata())
	case pod.KindPod:
	}
	return nil
}

// readRun reads what stage1 knows of a pod that runs or ran, once each.
func (x *index) readRun(e, old *entry) {
	u := e.uuid()
	if old != nil {
		e.network, e.user, e.resources = old.network, old.user, old.resources
	}
	if e.record.Kind == pod.KindSandbox {
		if e.phase == pod.Up && len(e.network.IPs) == 0 && !hostNetwork(e.sandbox) {
			n, err := x.inspector.Network(u)
			if err != nil {
				x.log.Error(err, "Network of a ready sandbox cannot be read", "sandbox", e.id())
			}
			e.network = n
		}
		return
	}
	if e.phase == pod.Created || e.phase == pod.Starting {
		return
	}
	if e.user == nil {
		e.user = x.userOf(e)
	}
	r := &resources{}
	if err := x.pods.Resources(u, r); err == nil {
		e.resources = r.LinuxContainerResources
	} else if !errors.Is(err, errdefs.ErrNotFound) {
		x.log.Error(err, "Resources cannot be read", "container", e.id())
	}
}

// userOf tells as whom a container runs; nil where that is not known any more.
func (x *index) userOf(e *entry) *runtimeapi.LinuxContainerUser {
	spec, err := x.inspector.Spec(e.uuid(), e.app().Name)
	if err != nil || spec == nil || spec.Process == nil {
		return nil
	}
	su := spec.Process.User
	user := &runtimeapi.LinuxContainerUser{Uid: int64(su.UID), Gid: int64(su.GID)}
	// CRI wants the primary group among the supplemental ones.
	groups := append([]uint32{su.GID}, su.AdditionalGids...)
	for i, g := range groups {
		if !slices.Contains(groups[:i], g) {
			user.SupplementalGroups = append(user.SupplementalGroups, int64(g))
		}
	}
	return user
}

func (x *index) get(u manifest.UUID) *entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.entries[u]
}

func (x *index) put(e *entry) {
	u := e.uuid()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.entries[u] = e
	if e.record.Owner != pod.OwnerCRI {
		return
	}
	// Of two pods with the same metadata, which only a failed clean-up leaves, the
	// later one holds it.
	if h := x.entries[x.keys[e.key]]; h == nil || byCreation(h, e) <= 0 {
		x.keys[e.key] = u
	}
	if e.record.Kind == pod.KindContainer {
		if x.members[e.record.Sandbox] == nil {
			x.members[e.record.Sandbox] = map[manifest.UUID]bool{}
		}
		x.members[e.record.Sandbox][u] = true
	}
	x.keepWatch(e)
}

// keepWatch sees to it that the end of what runs is noticed. The index is locked.
func (x *index) keepWatch(e *entry) {
	u := e.uuid()
	switch {
	case e.record.Kind == pod.KindContainer:
		if isRunning(e) && !x.watched[u] && x.ctx.Err() == nil {
			x.watched[u] = true
			x.tasks.Go(func() { x.awaitExit(u, e.app().Name) })
		}
	case e.phase == pod.Up && !x.watched[u]:
		if err := x.watcher.Add(x.pods.RunPath(u)); err != nil {
			x.log.Error(err, "Sandbox is not watched", "sandbox", e.id())
			return
		}
		x.watched[u] = true
		x.tasks.Go(func() { x.awaitInit(u) })
	}
}

// awaitInit waits until a sandbox's init has ended, where it has one, and reads
// the sandbox again: it is not ready any more.
func (x *index) awaitInit(u manifest.UUID) {
	c, err := x.inspector.WatchInit(x.ctx, u)
	if err != nil {
		x.log.Error(err, "Watching a sandbox's init failed", "pod", u)
	}
	if c == nil {
		return
	}
	if <-c; x.ctx.Err() == nil {
		x.refresh(u)
	}
}

// awaitExit waits until a container has ended and reads it again.
func (x *index) awaitExit(u manifest.UUID, app string) {
	defer func() {
		x.mu.Lock()
		delete(x.watched, u)
		x.mu.Unlock()
	}()
	for {
		c, err := x.inspector.Watch(x.ctx, u, app)
		if err == nil {
			exit, ok := <-c
			if ok {
				x.log.V(2).Info("Container ended", "pod", u, "code", exit.Code, "reason", exit.Reason)
			}
		} else if !errors.Is(err, errdefs.ErrNotFound) && x.ctx.Err() == nil {
			x.log.Error(err, "Watching a container failed", "pod", u)
		}
		if x.ctx.Err() != nil {
			return
		}
		x.refresh(u)
		if e := x.get(u); e == nil || !isRunning(e) && e.phase != pod.Starting {
			return
		}
		select {
		case <-x.ctx.Done():
			return
		case <-time.After(watchAgain):
		}
	}
}

// drop takes a pod out of the index. A sandbox stays, not ready, while one of its
// containers does.
func (x *index) drop(u manifest.UUID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.entries[u]
	if e == nil {
		return
	}
	if e.record.Kind == pod.KindSandbox {
		delete(x.watched, u)
		if len(x.members[u]) > 0 {
			ghost := *e
			ghost.ghost, ghost.phase = true, pod.Ended
			x.entries[u] = &ghost
			return
		}
	}
	x.remove(e)
	if e.record.Kind != pod.KindContainer {
		return
	}
	box := e.record.Sandbox
	delete(x.members[box], u)
	if len(x.members[box]) == 0 {
		delete(x.members, box)
		if b := x.entries[box]; b != nil && b.ghost {
			x.remove(b)
		}
	}
}

// remove forgets an entry. The index is locked.
func (x *index) remove(e *entry) {
	delete(x.entries, e.uuid())
	if x.keys[e.key] == e.uuid() {
		delete(x.keys, e.key)
	}
}

// list returns the pods of CRI of one kind in the order of their creation, whatever
// their keys are; the caller leaves out what is pending.
func (x *index) list(kind pod.Kind) ([]*entry, error) {
	x.mu.RLock()
	if !x.complete {
		x.mu.RUnlock()
		return nil, fmt.Errorf("the pods have not all been read yet: %w", errdefs.ErrBusy)
	}
	all := make([]*entry, 0, len(x.entries))
	for _, e := range x.entries {
		if e.record.Owner == pod.OwnerCRI && e.record.Kind == kind {
			all = append(all, e)
		}
	}
	x.mu.RUnlock()
	slices.SortFunc(all, byCreation)
	return all, nil
}

func byCreation(a, b *entry) int {
	return cmp.Or(a.record.CreatedAt.Compare(b.record.CreatedAt), cmp.Compare(a.uuid(), b.uuid()))
}

// all returns every pod, those of the command line included.
func (x *index) all() []*entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make([]*entry, 0, len(x.entries))
	for _, e := range x.entries {
		all = append(all, e)
	}
	return all
}

// containers returns the containers of a sandbox in the order of their creation.
func (x *index) containers(sandbox manifest.UUID) []*entry {
	x.mu.RLock()
	var all []*entry
	for u := range x.members[sandbox] {
		if e := x.entries[u]; e != nil {
			all = append(all, e)
		}
	}
	x.mu.RUnlock()
	slices.SortFunc(all, byCreation)
	return all
}

// holder returns the pod that holds a key, or nil.
func (x *index) holder(key string) *entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if u, ok := x.keys[key]; ok {
		return x.entries[u]
	}
	return nil
}

// find returns the pod of CRI that is meant: by its id, its UUID, or the
// beginning of either. ErrNotFound if there is none, ErrInvalid if there are several.
func (x *index) find(kind pod.Kind, spelling string) (*entry, error) {
	want := strings.ReplaceAll(spelling, "-", "")
	if want == "" {
		return nil, fmt.Errorf("the id of a %s is missing: %w", kind, errdefs.ErrInvalid)
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if !x.complete {
		return nil, fmt.Errorf("the pods have not all been read yet: %w", errdefs.ErrBusy)
	}
	if len(want) >= 32 {
		u, err := manifest.ID(want[:32] + strings.Repeat("0", 32)).UUID()
		if e := x.entries[u]; err == nil && e != nil && e.isMeant(kind, want) {
			return e, nil
		}
		return nil, fmt.Errorf("%s %q: %w", kind, spelling, errdefs.ErrNotFound)
	}
	var found *entry
	for _, e := range x.entries {
		if !e.isMeant(kind, want) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("several begin with %s %q: %w", kind, spelling, errdefs.ErrInvalid)
		}
		found = e
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", kind, spelling, errdefs.ErrNotFound)
	}
	return found, nil
}

func (e *entry) isMeant(kind pod.Kind, prefix string) bool {
	return e.record.Owner == pod.OwnerCRI && e.record.Kind == kind && strings.HasPrefix(e.id(), prefix)
}
