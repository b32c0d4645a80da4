package contract

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// inTheMaking are the programs of a sandbox that is not ready, and what strikes them.
var inTheMaking = []making{
	{"conmon", syscall.SIGSTOP},
	{"conmon", syscall.SIGKILL},
	{"init", syscall.SIGSTOP},
	{"init", syscall.SIGKILL},
	{"runtime", syscall.SIGSTOP},
	{"runtime", syscall.SIGKILL},
}

type making struct {
	program string
	sig     syscall.Signal
}

func (m making) name() string { return fmt.Sprint(m.program, "-", int(m.sig)) }

// TestStruckInTheMaking does what TestStruck does, to sandboxes that are not ready yet: the
// init of the shared PID namespace is about to be started.
func TestStruckInTheMaking(t *testing.T) {
	besideBystander(t, func(s *struck) {
		t.Run("beside the daemon", s.besideMaking)
		t.Run("daemon/STOP", func(t *testing.T) {
			v := s.making(t, "stopped")
			send(t, s.PID(), syscall.SIGSTOP)
			within(t, harness.Slowly(stopTime+5*time.Second), func() {
				if out, err := s.Command(t, "stop", "--force", v.id).CombinedOutput(); err == nil {
					t.Errorf("gantry stop says of what the daemon starts that it has ended: %s", out)
				}
			})
			send(t, s.PID(), syscall.SIGCONT)
			send(t, v.runtime, syscall.SIGCONT)
			v.started(t)
			v.unmade(t)
		})
		t.Run("daemon/KILL", func(t *testing.T) {
			v := s.making(t, "killed")
			s.Restart(t)
			end(t, v.runtime) // it would go on for nobody
			v.unmade(t)
		})

		// Nobody knows a process of theirs but the runtime's.
		t.Run("create", func(t *testing.T) {
			t.Run("sandbox", func(t *testing.T) { s.ask(t, "creating", "create").unmade(t) })
			t.Run("container", func(t *testing.T) {
				v := &victim{box: s.box, gate: s.gate, id: s.create(t, "creating", forever)}
				s.startHeld(t, v, "create")
				within(t, harness.Slowly(stopTime), func() { v.halt(t) })
				v.ended(t, unborn)
				v.removed(t)
			})
		})
	})
}

// besideMaking strikes other programs than the daemon.
func (s *struck) besideMaking(t *testing.T) {
	victims := map[string]*victim{}
	for i := 0; i < len(inTheMaking); i += stride(t) {
		victims[inTheMaking[i].name()] = s.making(t, inTheMaking[i].name())
	}
	for _, st := range inTheMaking {
		if v := victims[st.name()]; v != nil {
			t.Run(st.name(), func(t *testing.T) {
				t.Parallel()
				v.strike(t, st.program, st.sig)
				v.unmade(t)
			})
		}
	}
}

// making asks for a sandbox whose init is not started.
func (s *struck) making(t *testing.T, name string) *victim {
	t.Helper()
	v := s.ask(t, name, "start")
	v.init, v.monitor = s.pidFile(t, v.id, "init.pid"), s.pidFile(t, v.id, "monitor.pid")
	return v
}

// ask asks for a sandbox, and returns when the runtime has stopped itself before a command.
func (s *struck) ask(t *testing.T, name, command string) *victim {
	t.Helper()
	s.gate.arm(t, command, "any", syscall.SIGSTOP)
	config := sandboxConfig(t, name, runtimeapi.NamespaceMode_POD)
	v := &victim{box: &box{node: s.node, config: config}, gate: s.gate, starting: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	go func() {
		defer cancel()
		_, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		v.starting <- err
	}()
	v.runtime = s.gate.struck(t, command, "any")
	v.id = s.idOf(t, name)
	v.box.id = v.id
	return v
}

// unmade stops the sandbox in time, and looks for what is left of it. Whether RunPodSandbox had
// come to its end depends on who was struck.
func (v *victim) unmade(t *testing.T) {
	t.Helper()
	within(t, harness.Slowly(stopTime), func() { v.halt(t) })
	if err := v.answer(t); err == nil && v.ready(t) {
		t.Error("a stopped sandbox is ready")
	}
	v.removed(t)
}
