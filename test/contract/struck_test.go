package contract

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// How a container ends: with its exit code, with a code that nobody has seen, or before
// it ran. A sandbox has no code.
const (
	seen   = "137 Error"
	unseen = "255 Unknown"
	unborn = "128 StartError"
	gone   = "not ready"
)

// strikes are all states in which a pod has processes and all programs that it runs by then,
// with the end of the pod when that is stopped (SIGSTOP) or killed (SIGKILL) and the pod
// is stopped after that. An unmonitored container has no conmon, and one that is draining has
// no init. But for a start, the OCI runtime is struck in the delete that the end asks for.
var strikes = []struct{ state, program, stopped, killed string }{
	{"starting", "conmon", unseen, unseen},
	{"starting", "init", unborn, unborn},
	{"starting", "runtime", unborn, unborn},
	{"starting", "daemon", seen, unborn},
	{"running", "conmon", unseen, unseen},
	{"running", "init", seen, seen},
	{"running", "runtime", seen, seen},
	{"running", "daemon", seen, seen},
	{"unmonitored", "init", unseen, unseen},
	{"unmonitored", "runtime", unseen, unseen},
	{"unmonitored", "daemon", unseen, unseen},
	{"draining", "conmon", unseen, unseen},
	{"draining", "runtime", unseen, unseen},
	{"draining", "daemon", unseen, unseen},
	{"sandbox", "conmon", gone, gone},
	{"sandbox", "init", gone, gone},
	{"sandbox", "runtime", gone, gone},
	{"sandbox", "daemon", gone, gone},
}

// stopTime is the most that a stop may take, whatever is stopped or dead: the grace
// period, the steps that wait for somebody, and a busy machine.
const stopTime = 20 * time.Second

// TestStruck strikes each program in each state. Whatever it was, the pod is stopped in
// time and says how it ended.
func TestStruck(t *testing.T) {
	besideBystander(t, func(s *struck) {
		t.Run("beside the daemon", func(t *testing.T) {
			for i := 0; i < len(strikes); i += stride(t) {
				if st := strikes[i]; st.program != "daemon" {
					t.Run(st.state+"/"+st.program+"/STOP", func(t *testing.T) { s.beside(t, st.state, st.program, syscall.SIGSTOP, st.stopped) })
					t.Run(st.state+"/"+st.program+"/KILL", func(t *testing.T) { s.beside(t, st.state, st.program, syscall.SIGKILL, st.killed) })
				}
			}
		})
		t.Run("daemon/STOP", s.daemonStopped)
		t.Run("daemon/KILL", s.daemonKilled)
	})
}

// besideBystander has pods struck beside a container, and holds that they leave nothing
// and that it is not touched.
func besideBystander(t *testing.T, strike func(s *struck)) {
	t.Helper()
	g := newGate(t, ociRuntime(t))
	n := newNode(t, config(t, "runtime: "+g.program)...)
	s := &struck{n.sandbox(t, "stays"), g}
	bystander := s.start(t, "bystander", forever)
	was := n.processes(t, bystander)
	c := &caller{node: n, t: t, scope: harness.LeakScope{Dirs: []string{n.Base}, Bridge: n.Network.Bridge}}
	before, files := c.snapshot(), held(t, n.Gantry)
	c.before = &before

	strike(s)

	n.CLI(t, "gc")
	c.restored()
	if now := held(t, n.Gantry); !slices.Equal(now, files) {
		t.Errorf("the directories hold %v, and held %v", now, files)
	}
	if found, content := n.doctor(t); len(found) > 0 || !content {
		t.Errorf("the doctor finds %v", found)
	}
	n.wantState(t, bystander, "RUNNING")
	if is := n.processes(t, bystander); is != was {
		t.Errorf("the bystander was %v and is %v", was, is)
	}
	harness.Unbroken(t, filepath.Join(s.config.LogDirectory, "bystander.log"))
}

// struck is the sandbox in which pods are struck.
type struck struct {
	*box
	gate *gate
}

// victim is a pod in one of the states of strikes.
type victim struct {
	*box
	gate *gate
	// id is the container's or, when that is the victim, the sandbox's.
	id            string
	monitor, init int
	// starting yields what StartContainer says; nil for a pod that has started.
	starting chan error
	// runtime is the OCI runtime that starts it, and is stopped.
	runtime int
}

// beside strikes another program than the daemon.
func (s *struck) beside(t *testing.T, state, program string, sig syscall.Signal, want string) {
	t.Parallel()
	v := s.victim(t, state, fmt.Sprint(program, int(sig)))
	v.strike(t, program, sig)
	within(t, harness.Slowly(stopTime), func() { v.halt(t) })
	v.ended(t, want)
	v.removed(t)
}

// daemonStopped stops the daemon, and pods on the command line then. What the daemon was
// about to start it holds, and the command says so in time.
func (s *struck) daemonStopped(t *testing.T) {
	victims := s.victims(t, "stop")
	send(t, s.PID(), syscall.SIGSTOP)
	t.Run("stop", func(t *testing.T) {
		for state, v := range victims {
			t.Run(state, func(t *testing.T) {
				t.Parallel()
				within(t, harness.Slowly(stopTime+5*time.Second), func() {
					out, err := s.Command(t, "stop", "--force", "--grace-period=1s", v.id).CombinedOutput()
					if held := v.starting != nil; held != (err != nil) {
						t.Errorf("gantry stop: %v, held by the daemon: %v\n%s", err, held, out)
					}
				})
			})
		}
	})
	send(t, s.PID(), syscall.SIGCONT)
	v := victims["starting"]
	send(t, v.runtime, syscall.SIGCONT)
	v.started(t)
	within(t, harness.Slowly(stopTime), func() { v.halt(t) })
	for _, st := range strikes {
		if st.program == "daemon" {
			victims[st.state].ended(t, st.stopped)
			victims[st.state].removed(t)
		}
	}
}

// daemonKilled kills the daemon, and has another one stop the pods.
func (s *struck) daemonKilled(t *testing.T) {
	victims := s.victims(t, "kill")
	s.Restart(t)
	end(t, victims["starting"].runtime) // it would go on for nobody
	t.Run("stop", func(t *testing.T) {
		for _, st := range strikes {
			if st.program == "daemon" {
				t.Run(st.state, func(t *testing.T) {
					t.Parallel()
					v := victims[st.state]
					within(t, harness.Slowly(stopTime), func() { v.halt(t) })
					v.ended(t, st.killed)
					v.removed(t)
				})
			}
		}
	})
}

// victims has one in each state.
func (s *struck) victims(t *testing.T, name string) map[string]*victim {
	t.Helper()
	all := map[string]*victim{}
	for _, st := range strikes {
		if st.program == "daemon" && st.state != "draining" {
			all[st.state] = s.victim(t, st.state, name)
		}
	}
	all["draining"] = s.victim(t, "draining", name) // the last, because it does not drain for long
	return all
}

// victim brings a pod into a state.
func (s *struck) victim(t *testing.T, state, name string) *victim {
	t.Helper()
	name = state + "-" + name
	v := &victim{box: s.box, gate: s.gate}
	switch state {
	case "sandbox":
		v.box = s.sandboxOf(t, sandboxConfig(t, name, runtimeapi.NamespaceMode_POD))
		v.id = v.box.id
	case "starting":
		v.id = s.create(t, name, forever)
		s.startHeld(t, v, "start")
		v.init, v.monitor = s.pidFile(t, v.id, "init.pid"), s.pidFile(t, v.id, "monitor.pid")
		s.wantState(t, v.id, "CREATED")
		return v
	default:
		v.id = s.start(t, name, forever)
	}
	p := s.processes(t, v.id)
	v.init, v.monitor = p.Init.PID, p.Monitor.PID
	switch state {
	case "unmonitored":
		end(t, v.monitor)
	case "draining":
		send(t, v.monitor, syscall.SIGSTOP)
		end(t, v.init)
	}
	if state != "sandbox" {
		s.wantState(t, v.id, "RUNNING")
	} else if !v.ready(t) {
		t.Error("the sandbox is not ready")
	}
	return v
}

// startHeld starts a container whose runtime stops itself before a command.
func (s *struck) startHeld(t *testing.T, v *victim, command string) {
	t.Helper()
	s.gate.arm(t, command, v.id, syscall.SIGSTOP)
	v.starting = make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	go func() {
		defer cancel()
		_, err := s.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: v.id})
		v.starting <- err
	}()
	v.runtime = s.gate.struck(t, command, v.id)
}

// pidFile reads a file of a container that has not started.
func (n *node) pidFile(t *testing.T, id, name string) (pid int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.RunDir, "pods", uuid(id), "apps", "*", name))
	if err != nil || len(files) != 1 {
		t.Fatalf("%s of %s: %v, err %v", name, id, files, err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(raw), &pid); err != nil {
		t.Fatalf("%s: %v", files[0], err)
	}
	return pid
}

// strike sends the signal. A start that is held goes on then, and comes to its end unless
// what it needs is stopped.
func (v *victim) strike(t *testing.T, program string, sig syscall.Signal) {
	t.Helper()
	target := map[string]int{"conmon": v.monitor, "init": v.init, "runtime": v.runtime}[program]
	if target == 0 {
		v.gate.arm(t, "delete", v.id, sig)
		return
	}
	send(t, target, sig)
	if sig == syscall.SIGKILL {
		dead(t, target)
	}
	if v.starting == nil {
		return
	}
	if program != "runtime" {
		send(t, v.runtime, syscall.SIGCONT)
	}
	if hangs := sig == syscall.SIGSTOP && program != "conmon"; !hangs {
		v.started(t)
	}
}

// started waits until StartContainer has come to an end.
func (v *victim) started(t *testing.T) {
	t.Helper()
	v.starting <- v.answer(t)
}

// answer is what StartContainer says.
func (v *victim) answer(t *testing.T) error {
	t.Helper()
	select {
	case err := <-v.starting:
		return err
	case <-time.After(harness.Slowly(patience)):
		t.Fatal("StartContainer does not come to an end")
		return nil
	}
}

// halt asks the daemon for the end.
func (v *victim) halt(t *testing.T) {
	t.Helper()
	if v.id == v.box.id {
		v.stop(t)
		return
	}
	v.stopID(t, v.id, 1)
}

// ended looks for the record of the end.
func (v *victim) ended(t *testing.T, want string) {
	t.Helper()
	if v.id == v.box.id {
		if v.ready(t) {
			t.Error("a stopped sandbox is ready")
		}
		return
	}
	st := v.status(t, v.id)
	if got := fmt.Sprintf("%d %s", st.ExitCode, st.Reason); word(st.State) != "EXITED" || got != want {
		t.Errorf("the container is %s with %s (%s), want %s", word(st.State), got, st.Message, want)
	}
	if v.starting == nil {
		return
	}
	if err := v.answer(t); (err != nil) != (want == unborn) {
		t.Errorf("StartContainer said %v of a container that ended with %s", err, want)
	}
}

// removed removes the pod and looks for what is left of it.
func (v *victim) removed(t *testing.T) {
	t.Helper()
	var err error
	if v.id == v.box.id {
		_, err = v.RemovePodSandbox(call(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: v.id})
	} else {
		_, err = v.RemoveContainer(call(t), &runtimeapi.RemoveContainerRequest{ContainerId: v.id})
	}
	if err != nil {
		t.Errorf("remove: %v", err)
	}
	for _, dir := range []string{filepath.Join(v.Dir, "pods/by-id", uuid(v.id)), filepath.Join(v.RunDir, "pods", uuid(v.id))} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("a removed pod has %s: %v", dir, err)
		}
	}
	dead(t, v.init)
	dead(t, v.monitor)
	if v.runtime != 0 {
		dead(t, v.runtime)
	}
}

// gate is a program before the OCI runtime that stops or kills itself where it is armed.
type gate struct{ program, dir string }

func newGate(t *testing.T, real string) *gate {
	t.Helper()
	dir := harness.Dir(t)
	g := &gate{filepath.Join(dir, "gate"), dir}
	script := `#!/bin/sh
for id; do :; done
for command in create start delete; do
	for name in $id any; do
		armed=` + dir + `/$command-$name
		case " $* " in
		*" $command "*)
			if mv "$armed" "$armed.taken" 2>/dev/null; then
				read signal <"$armed.taken"
				echo $$ >"$armed.tmp" && mv "$armed.tmp" "$armed.pid"
				kill -"$signal" $$
			fi
		esac
	done
done
exec ` + real + ` "$@"
`
	if err := os.WriteFile(g.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return g
}

// arm has the next command on a container, or on any, strike itself.
func (g *gate) arm(t *testing.T, command, id string, sig syscall.Signal) {
	t.Helper()
	name, file := map[syscall.Signal]string{syscall.SIGSTOP: "STOP", syscall.SIGKILL: "KILL"}[sig], filepath.Join(g.dir, command+"-"+id)
	if err := os.RemoveAll(file + ".pid"); err != nil { // of the last
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(name+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// struck waits for the command and returns its process, which is stopped.
func (g *gate) struck(t *testing.T, command, id string) (pid int) {
	t.Helper()
	harness.Eventually(t, patience, func() string {
		raw, err := os.ReadFile(filepath.Join(g.dir, command+"-"+id+".pid"))
		if err != nil {
			return err.Error()
		}
		if _, err := fmt.Sscan(string(raw), &pid); err != nil {
			return err.Error()
		}
		if state, err := processState(pid); state != "T" {
			return fmt.Sprintf("the runtime is not stopped: %s, %v", state, err)
		}
		return ""
	})
	return pid
}
