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

	mu       sync.Mutex // guards what follows
	said     string     // the reason that was logged last
	fetching map[flight]stage0.LayerProgress
	told     time.Time // when the log last said what is being fetched, or nothing was
}

// LayerProgress is part of stage0.Observer. The log says how far the images are whose
// fetch takes long; the metrics cannot, since each name would be a series for ever.
func (o *observer) LayerProgress(l stage0.LayerProgress) {
	o.metrics.LayerProgress(l)
	for _, n := range o.fetchNews(l, time.Now()) {
		o.log.Info("Fetching image", "image", n.image, "layersInFlight", n.layers, "bytes", n.done, "of", n.size)
	}
}

// fetchNews is how far an image is: its layers that are being fetched, and their bytes.
type fetchNews struct {
	image      string
	layers     int
	done, size int64
}

// fetchNews takes note of a layer, and returns what the log shall say now: mostly nothing.
func (o *observer) fetchNews(l stage0.LayerProgress, now time.Time) []fetchNews {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.State != stage0.LayerFetching {
		delete(o.fetching, flight{l.Image, l.Layer})
		return nil
	}
	// One layer may end before the next begins; only a longer rest is the end of all.
	if len(o.fetching) == 0 && now.Sub(o.told) >= 2*fetchNewsPeriod {
		o.fetching, o.told = map[flight]stage0.LayerProgress{}, now
	}
	o.fetching[flight{l.Image, l.Layer}] = l
	if now.Sub(o.told) < fetchNewsPeriod {
		return nil
	}
	o.told = now
	sums := map[string]fetchNews{}
	for f, l := range o.fetching {
		n := sums[f.image]
		sums[f.image] = fetchNews{f.image, n.layers + 1, n.done + l.Done, n.size + l.Size}
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
