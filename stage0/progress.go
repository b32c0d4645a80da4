package stage0

import (
	"github.com/opencontainers/go-digest"
)

// LayerState is how far a layer is that a Fetch needs.
type LayerState string

// The states. A layer begins as present, waiting or fetching.
const (
	LayerPresent  LayerState = "present"  // it is a tree: it was one before, or became one while we waited
	LayerWaiting  LayerState = "waiting"  // somebody else fetches it, perhaps in another process
	LayerFetching LayerState = "fetching" // it is downloaded, verified and extracted
	LayerDone     LayerState = "done"     // all of that has happened
	LayerFailed   LayerState = "failed"
)

// LayerStates are all of them.
var LayerStates = [...]LayerState{LayerPresent, LayerWaiting, LayerFetching, LayerDone, LayerFailed}

// LayerProgress is news of a layer. Fetching is told once with nothing done, when
// it begins, and then for every read.
type LayerProgress struct {
	Image string        `json:"image"` // the reference or file that is fetched
	Layer digest.Digest `json:"layer"` // of the blob; empty for an ACI, which is known once it is read
	State LayerState    `json:"state"`
	Done  int64         `json:"done"` // bytes of the blob that have come
	Size  int64         `json:"size"` // bytes of the blob
}

func (p *Pipeline) layerIs(l layer, s LayerState, done int64) {
	if p.Observer != nil {
		p.Observer.LayerProgress(LayerProgress{Image: l.image, Layer: l.Digest, State: s, Done: done, Size: l.Size})
	}
}
