package harness

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// GantryOptions vary how the daemon is started.
type GantryOptions struct {
	Registries   []string // host:port of those that speak plain http
	CgroupDriver string   // $GANTRY_CGROUP_DRIVER or cgroupfs unless set
	NoNetwork    bool     // an empty CNI configuration directory
	Dir          string   // --dir; one of its own unless set
	Config       string   // text of the configuration file of all commands; none unless set
	Args         []string // more arguments of serve
	Env          []string
	Wrapper      []string // a program and arguments that become the daemon by exec
}

// Gantry is a daemon on directories of its own, and the command line on the
// same ones.
type Gantry struct {
	*Process
	Base        string // everything of this daemon lies below
	Dir         string // --dir
	RunDir      string // --run-dir
	Endpoint    string // unix://PATH
	MetricsAddr string
	RegistryDir string
	Network     *Network // nil with NoNetwork
	Binary      string   // what Start and the command line run
	options     GantryOptions
}

// binary is $GANTRY_BIN (from the root of the checkout), or gantry built from
// the checkout.
var binary = sync.OnceValues(func() (string, error) {
	bin := os.Getenv("GANTRY_BIN")
	if filepath.IsAbs(bin) {
		return bin, nil
	}
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	if bin != "" {
		return filepath.Join(root, bin), nil
	}
	bin = filepath.Join(images.DefaultCache(), "e2e", "gantry")
	return bin, build(root, bin)
})

// build links the program of the checkout, with more flags of go build.
func build(root, bin string, flags ...string) error {
	cmd := exec.Command("go", slices.Concat([]string{"build", "-o", bin}, flags, []string{"./cmd/gantry"})...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build gantry: %w\n%s", err, out)
	}
	return nil
}

// BuildVersion builds gantry from the checkout with a version of its own.
func BuildVersion(tb testing.TB, version string) string {
	tb.Helper()
	root, err := Checkout()
	if err != nil {
		tb.Fatal(err)
	}
	bin := filepath.Join(tb.TempDir(), "gantry")
	if err := build(root, bin, "-ldflags", "-s -X main.version="+version); err != nil {
		tb.Fatal(err)
	}
	return bin
}

// Binary is the path of the gantry that is tested.
func Binary(tb testing.TB) string {
	tb.Helper()
	bin, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return bin
}

// NewGantry makes the directories of a daemon that is not started yet: the
// command line works without it. At the end of the test its CRI pods are
// removed, and mounts, processes, links or cgroups that are left fail the test;
// pods of the command line are the test's own business.
func NewGantry(tb testing.TB, o GantryOptions) *Gantry {
	tb.Helper()
	o.CgroupDriver = cmp.Or(o.CgroupDriver, CgroupDriver())
	base := Dir(tb)
	g := &Gantry{
		Base: base, Dir: o.Dir, RunDir: filepath.Join(base, "run"), RegistryDir: filepath.Join(base, "certs.d"),
		Endpoint: "unix://" + filepath.Join(base, "run", "gantry.sock"), MetricsAddr: FreeAddr(tb), Binary: Binary(tb), options: o,
	}
	if g.Dir == "" {
		g.Dir = filepath.Join(base, "lib")
	}
	for _, dir := range []string{g.Dir, g.RunDir, g.RegistryDir, g.confDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			tb.Fatalf("make directory: %v", err)
		}
	}
	for _, addr := range o.Registries {
		WriteHosts(tb, g.RegistryDir, addr)
	}
	if o.Config != "" {
		if err := os.WriteFile(g.configFile(), []byte(o.Config), 0o600); err != nil {
			tb.Fatalf("write configuration: %v", err)
		}
	}
	scope := LeakScope{Dirs: []string{base, g.Dir}}
	if !o.NoNetwork {
		g.Network = NewNetwork(tb, base)
		scope.Bridge = g.Network.Bridge
	}
	CheckLeaks(tb, scope)
	tb.Cleanup(func() {
		if g.Process == nil {
			return
		}
		if g.Running() {
			RemovePods(tb, g.Raw(tb))
		}
		g.Finish(tb)
	})
	return g
}

// StartGantry makes a daemon and starts it.
func StartGantry(tb testing.TB, o GantryOptions) *Gantry {
	tb.Helper()
	g := NewGantry(tb, o)
	g.Start(tb)
	return g
}

func (g *Gantry) configFile() string { return filepath.Join(g.Base, "config.yaml") }

func (g *Gantry) confDir() string { return filepath.Join(g.Base, "net.d") }

// Environ replaces GantryOptions.Env from the next start on.
func (g *Gantry) Environ(env ...string) { g.options.Env = env }

// Start starts the daemon, for the first time or again, and waits until it
// answers.
func (g *Gantry) Start(tb testing.TB) {
	tb.Helper()
	argv := slices.Concat(g.options.Wrapper, []string{g.Binary, "serve"}, g.flags(),
		[]string{"--listen", g.Endpoint, "--metrics-address", g.MetricsAddr}, g.options.Args)
	g.Process = StartProcess(tb, g.Base, "gantry", argv, g.options.Env...)
	client := RawClient(tb, g.Endpoint)
	g.WaitFor(tb, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := client.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
}

// Restart kills the daemon with SIGKILL and starts it again.
func (g *Gantry) Restart(tb testing.TB) {
	tb.Helper()
	g.Kill(tb)
	g.Start(tb)
}

// Raw opens bare gRPC clients.
func (g *Gantry) Raw(tb testing.TB) Raw {
	tb.Helper()
	return RawClient(tb, g.Endpoint)
}

// flags are those that the daemon and all other subcommands have in common.
func (g *Gantry) flags() []string {
	flags := []string{
		"--dir", g.Dir, "--run-dir", g.RunDir, "--cni-conf-dir", g.confDir(), "--cni-bin-dir", CNIBinDir,
		"--registry-config-dir", g.RegistryDir, "--cgroup-driver", g.options.CgroupDriver,
	}
	if g.options.Config != "" {
		flags = append(flags, "--config", g.configFile())
	}
	return flags
}

// Command is a subcommand of gantry on this daemon's directories. It may be run
// in a cleanup too.
func (g *Gantry) Command(tb testing.TB, subcommand string, args ...string) *exec.Cmd {
	tb.Helper()
	ctx := context.WithoutCancel(tb.Context())
	cmd := exec.CommandContext(ctx, g.Binary, slices.Concat([]string{subcommand}, g.flags(), args)...)
	cmd.Env = append(os.Environ(), g.options.Env...)
	return cmd
}

// CLI runs a subcommand, fails the test unless it succeeds, and returns its
// standard output.
func (g *Gantry) CLI(tb testing.TB, subcommand string, args ...string) string {
	tb.Helper()
	cmd := g.Command(tb, subcommand, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("gantry %s %q: %v\n%s", subcommand, args, err, stderr.Bytes())
	}
	return string(out)
}

// Metrics is what the daemon's /metrics says now.
func (g *Gantry) Metrics(tb testing.TB) string {
	tb.Helper()
	return httpText(tb, "http://"+g.MetricsAddr+"/metrics")
}
