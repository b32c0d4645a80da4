package main

import (
	"net/netip"
	"os"
	"time"

	"github.com/gantry-cri/gantry/stage0/manifest"
	"github.com/gantry-cri/gantry/stage0/pod"
)

// podView is a pod as list and status print it. Programs outside read the JSON:
// fields may be added, never renamed.
type podView struct {
	UUID      manifest.UUID `json:"uuid"`
	ID        manifest.ID   `json:"id"`
	Owner     pod.Owner     `json:"owner"`
	State     pod.State     `json:"state"` // rkt's words
	Kind      pod.Kind      `json:"kind"`
	Sandbox   manifest.UUID `json:"sandbox,omitempty"`
	Apps      []appView     `json:"apps"`
	CreatedAt time.Time     `json:"createdAt"`
	StartedAt *time.Time    `json:"startedAt"` // null before the start
	IPs       []netip.Addr  `json:"ips"`       // of a running pod with a network of its own
}

// appView is one app of a pod.
type appView struct {
	Name    string `json:"name"`
	Image   string `json:"image"`   // as it was spelt
	ImageID string `json:"imageID"` // the config digest
	State   string `json:"state"`   // created, running or exited
	// Phase is the finer word of the state table: unmonitored and draining are running.
	Phase     pod.Phase  `json:"phase"`
	ExitCode  *int32     `json:"exitCode"` // null while there is no exit record
	Reason    string     `json:"reason,omitempty"`
	Message   string     `json:"message,omitempty"`
	StartedAt *time.Time `json:"startedAt"`
	EndedAt   *time.Time `json:"endedAt"`
	PID       int        `json:"pid,omitempty"`
}

// view gathers what is known of a pod. What cannot be read of its network is left
// out: the pod may be ending.
func (h *house) view(p *pod.Pod) podView {
	r := p.Record
	v := podView{
		UUID: r.UUID, ID: r.ID, Owner: r.Owner, State: p.State(), Kind: r.Kind, Sandbox: r.Sandbox,
		Apps: []appView{}, CreatedAt: r.CreatedAt, IPs: []netip.Addr{},
	}
	if p.Ready {
		if result, err := h.runner.Network(r.UUID); err == nil {
			v.IPs = append(v.IPs, result.IPs...)
		}
		if ready, err := os.Stat(h.Pods.RunPath(r.UUID, "ready")); err == nil {
			at := ready.ModTime()
			v.StartedAt = &at
		}
	}
	for _, a := range r.Apps {
		app := appViewOf(p, a)
		if app.StartedAt != nil && (v.StartedAt == nil || app.StartedAt.Before(*v.StartedAt)) {
			v.StartedAt = app.StartedAt
		}
		v.Apps = append(v.Apps, app)
	}
	return v
}

func appViewOf(p *pod.Pod, a pod.AppRecord) appView {
	v := appView{Name: a.Name, Image: a.ImageName, ImageID: a.ImageID, Phase: p.AppPhase(a.Name)}
	if v.Image == "" {
		v.Image = a.ImageRef
	}
	if s, ok := p.Started[a.Name]; ok {
		v.StartedAt = &s.StartedAt
		if s.Init.Alive() {
			v.PID = s.Init.PID
		}
	}
	if e, ok := p.Exits[a.Name]; ok {
		v.ExitCode, v.Reason, v.Message, v.EndedAt = &e.Code, e.Reason, e.Message, &e.EndedAt
		if v.StartedAt == nil && !e.StartedAt.IsZero() {
			v.StartedAt = &e.StartedAt
		}
	}
	v.State = appState(v.Phase)
	return v
}

// appState puts a phase in rkt's words for apps.
func appState(ph pod.Phase) string {
	switch ph {
	case pod.Up, pod.Unmonitored, pod.Draining:
		return "running"
	case pod.Ended, pod.Lost:
		return "exited"
	case pod.Unlisted:
		return "unknown"
	default:
		return "created"
	}
}
