package shim

import (
	"sync"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
)

// observer is the daemon's stage0.Observer: it counts, and logs what an
// administrator may want to change.
type observer struct {
	*metrics
	log klog.Logger

	mu   sync.Mutex
	said string // the reason that was logged last
}

// SpoolLost is part of stage0.Observer.
func (o *observer) SpoolLost(layer digest.Digest, reason error) {
	o.log.Info("Dropped what was kept of a download", "layer", layer, "reason", reason.Error())
}

// OverlayDisabled is part of stage0.Observer. A reason is logged once, not for
// every pod.
func (o *observer) OverlayDisabled(reason string) {
	o.copied.Inc()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said == reason {
		return
	}
	o.said = reason
	o.log.Info("Disabled overlay support: root filesystems are copied", "reason", reason)
}
