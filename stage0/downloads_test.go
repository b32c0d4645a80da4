package stage0_test

import (
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/stage0/fetch"
	"github.com/gantry-cri/gantry/stage0/fetch/registrytest"
)

// openBlobs counts the requests for blobs that a registry has not answered yet.
type openBlobs struct {
	layers map[string]bool // by digest; other blobs are not counted
	want   int             // that are to be open at once

	mu        sync.Mutex
	open      map[string]int // by repository
	most, all int            // at once, of one repository and of all
}

func (o *openBlobs) count(w http.ResponseWriter, q *http.Request, next http.Handler) {
	if repository, blob, ok := strings.Cut(q.URL.Path, "/blobs/"); ok && o.layers[blob] {
		o.add(repository, 1)
		// They do meet, also on a busy machine, and there is time for one too many.
		for range 100 {
			time.Sleep(20 * time.Millisecond)
			if o.met() {
				break
			}
		}
		o.add(repository, -1) // before it is answered: the next one comes after that
	}
	next.ServeHTTP(w, q)
}

func (o *openBlobs) add(repository string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[repository] += n
	sum := 0
	for _, n := range o.open {
		sum += n
	}
	o.most, o.all = max(o.most, o.open[repository]), max(o.all, sum)
}

func (o *openBlobs) met() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all >= o.want
}

// Layers are fetched several at once, and never more than the configuration says, by
// image and of all images.
func TestDownloadsAreBounded(t *testing.T) {
	needRoot(t)
	reg := registrytest.Start(t)
	const images, layersEach = 4, 5
	for _, tt := range []struct {
		name           string
		image, total   int
		wantMost, want int
	}{
		{"by image and in all", 2, 4, 2, 4},
		{"in all alone", 5, 3, 3, 3},
		{"by image, and in all by default", 2, 0, 2, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			blobs := &openBlobs{layers: map[string]bool{}, want: tt.want, open: map[string]int{}}
			proxy := reg.Proxy(t, blobs.count)
			var pull []string
			for i := range images {
				var layers []v1.Layer
				for j := range layersEach {
					l := registrytest.Layer(t, false, registrytest.Tar(t, fmt.Sprint(i), fmt.Sprint(j)))
					blobs.layers[digestOf(t, l)] = true
					layers = append(layers, l)
				}
				name := fmt.Sprintf("i%d:1", i)
				reg.Push(t, name, registrytest.Image(t, registrytest.Spec{Platform: linux, Layers: layers}))
				pull = append(pull, path.Join(proxy.Host, name))
			}
			p, _ := newPipeline(t, t.TempDir())
			p.Source = fetch.NewRegistry(fetch.Config{}) // patient: blobs are held up
			p.MaxDownloads, p.MaxDownloadsTotal = tt.image, tt.total
			var g sync.WaitGroup
			for _, name := range pull {
				g.Go(func() {
					if _, err := p.Fetch(t.Context(), request(t, name)); err != nil {
						t.Error(err)
					}
				})
			}
			g.Wait()
			if blobs.all != tt.want || blobs.most > tt.wantMost {
				t.Errorf("%d layers were asked for at once, %d of one image", blobs.all, blobs.most)
			}
			if n := proxy.Count("GET", ""); n < images*layersEach {
				t.Errorf("%d requests", n)
			}
		})
	}
}
