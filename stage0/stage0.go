// Package stage0 is the prepare pipeline. It readies pods for launch:
//
//	Fetch:    resolve ▶ fetch ▶ verify ▶ extract into the tree store ▶ commit     (PullImage, gantry fetch)
//	Prepare:  allocate UUID ▶ ensure trees ▶ lay root filesystem ▶ commit          (CreateContainer, gantry prepare)
//
// Both doors, the CRI server and the command line, call it on the same state on
// disk. It does not log and knows nothing of gRPC; how long the stages take is
// told to an Observer.
package stage0

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/stage0/idmap"
	"github.com/gantry-cri/gantry/stage0/overlay"
	"github.com/gantry-cri/gantry/stage0/pod"
	"github.com/gantry-cri/gantry/stage0/store"
	"github.com/gantry-cri/gantry/stage0/tree"
)

// Pipeline fetches images and prepares pods on one data directory. The zero value
// of Observer is a silent one; everything else must be set, but for what says what
// its zero is. Its methods may be
// called at once by any number of goroutines and processes.
type Pipeline struct {
	Images   *store.Store
	Trees    *tree.Store
	Pods     *pod.Pods
	Source   Source
	Overlay  overlay.Site
	Users    idmap.Pool
	Observer Observer
	// FetchTimeout bounds a Fetch as a whole, waiting for others included; zero is no
	// bound. It ends as ErrUnavailable and says how far it got.
	FetchTimeout time.Duration
	// SpoolAbove is the size in bytes above which a layer's blob is kept on disk while
	// Fetch downloads it, so that the next Fetch goes on where this process ended; zero
	// or less keeps none.
	SpoolAbove int64
	// MaxDownloads is how many layers of one image are fetched at once; zero is as many
	// as there are cores, and at least three. Layers that need much memory to decompress
	// are fewer. MaxDownloadsTotal is how many of all images; zero is twice as many.
	MaxDownloads, MaxDownloadsTotal int

	slots slots
}

// Stage is a part of the pipeline that is timed by itself.
type Stage string

// The stages. With layers in one pass, fetch, verify and extract overlap: see Fetch.
const (
	StageResolve  Stage = "resolve"
	StageFetch    Stage = "fetch"
	StageVerify   Stage = "verify"
	StageExtract  Stage = "extract"
	StageAllocate Stage = "allocate"
	StageRootfs   Stage = "rootfs"
	StageCommit   Stage = "commit"
)

// Stages are all of them, in the order of the pipeline.
var Stages = [...]Stage{StageResolve, StageFetch, StageVerify, StageExtract, StageAllocate, StageRootfs, StageCommit}

// Observer is told how the pipeline gets on. It is called from any number of
// goroutines and must not block.
type Observer interface {
	// StageDone says how long a stage took and how it ended.
	StageDone(s Stage, took time.Duration, err error)
	// BytesFetched says that n more bytes have come from a source.
	BytesFetched(n int64)
	// LayerProgress says how far a layer of a Fetch is.
	LayerProgress(l LayerProgress)
	// SpoolLost says that what was kept of a layer's download is gone, and why: the
	// disk is full, or the bytes were not the layer's.
	SpoolLost(layer digest.Digest, reason error)
	// OverlayDisabled says that a pod's root filesystems are copied, and why.
	OverlayDisabled(reason string)
}

// timed runs one stage and reports it, failed or not.
func (p *Pipeline) timed(s Stage, work func() error) error {
	start := time.Now()
	err := work()
	p.done(s, time.Since(start), err)
	return err
}

func (p *Pipeline) done(s Stage, took time.Duration, err error) {
	if p.Observer != nil {
		p.Observer.StageDone(s, took, err)
	}
}
