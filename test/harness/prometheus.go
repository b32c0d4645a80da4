package harness

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Prometheus is Debian's prometheus, scraping every second, or less often on a slow machine.
type Prometheus struct {
	*Process
	Addr string
}

const prometheusConfig = `global: {scrape_interval: %ds}
scrape_configs:
- job_name: gantry
  static_configs:
  - targets: ['%s']
`

// StartPrometheus starts a prometheus that scrapes /metrics at target, a
// host:port.
func StartPrometheus(tb testing.TB, target string) *Prometheus {
	tb.Helper()
	dir := Dir(tb)
	p := &Prometheus{Addr: FreeAddr(tb)}
	config := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, Slowly(time.Second)/time.Second, target), 0o644); err != nil {
		tb.Fatalf("write configuration of prometheus: %v", err)
	}
	p.Process = StartProcess(tb, dir, "prometheus", []string{
		"prometheus", "--config.file=" + config, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + p.Addr,
	})
	tb.Cleanup(func() { p.Finish(tb) })
	p.WaitFor(tb, 30*time.Second, func() error { return httpOK("http://" + p.Addr + "/-/ready") })
	return p
}

// Query evaluates an expression and returns the value of each series that comes
// out, without its labels.
func (p *Prometheus) Query(tb testing.TB, expression string) []float64 {
	tb.Helper()
	resp, err := http.Get("http://" + p.Addr + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		tb.Fatalf("query prometheus: %v", err)
	}
	defer resp.Body.Close()
	var answer struct {
		Error string
		Data  struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		tb.Fatalf("decode answer of prometheus: %v", err)
	}
	if answer.Error != "" {
		tb.Fatalf("query prometheus %q: %s", expression, answer.Error)
	}
	var values []float64
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			tb.Fatalf("decode value of %q: %v", expression, err)
		}
		values = append(values, v)
	}
	return values
}
