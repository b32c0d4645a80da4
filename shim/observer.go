package shim

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/stage0"
)

// fetchNewsPeriod is the least pause between two lines about one image that is being
// fetched, and how long a fetch takes before there is a line at all.
const fetchNewsPeriod = 10 * time.Second

// observer is the daemon's stage0.Observer: it counts, and logs what an
// administrator may want to change.
type observer struct {
	*metrics
	log klog.Logger

	mu   sync.Mutex // guards what follows
	said string     // the reason that was logged last
	told time.Time  // when the log last said what is being fetched, or nothing was
}

// LayerProgress is part of stage0.Observer. The log says how far the images are whose
// fetch takes long; the metrics cannot, since each name would be a series for ever.
func (o *observer) LayerProgress(l stage0.LayerProgress) {
	first := o.metrics.LayerProgress(l)
	if l.State != stage0.LayerFetching {
		return
	}
	now := time.Now()
	if first {
		o.begun(now)
	}
	if !o.newsDue(now) {
		return
	}
	for _, n := range fetchNewsOf(o.inAir()) {
		o.log.Info("Fetching image", "image", n.image, "layersInFlight", n.layers, "bytes", n.done, "of", n.size)
	}
}

// begun hears that a layer is in flight where none was. One may end before the next
// begins; only a longer rest is the end of all.
func (o *observer) begun(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Sub(o.told) >= 2*fetchNewsPeriod {
		o.told = now
	}
}

// newsDue says whether the log shall say now how far the images are: mostly not.
func (o *observer) newsDue(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Sub(o.told) < fetchNewsPeriod {
		return false
	}
	o.told = now
	return true
}

// fetchNews is how far an image is: its layers that are being fetched, and their bytes.
type fetchNews struct {
	image      string
	layers     int
	done, size int64
}

func fetchNewsOf(layers []stage0.LayerProgress) []fetchNews {
	sums := map[string]fetchNews{}
	for _, l := range layers {
		n := sums[l.Image]
		sums[l.Image] = fetchNews{l.Image, n.layers + 1, n.done + l.Done, n.size + l.Size}
	}
	return slices.SortedFunc(maps.Values(sums), func(a, b fetchNews) int { return cmp.Compare(a.image, b.image) })
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
