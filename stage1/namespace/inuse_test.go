package namespace

import (
	"os/exec"
	"testing"
)

func TestInUse(t *testing.T) {
	dir := pins(t)
	if err := Make(Spec{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	pin := Pin(dir, Net)
	want := func(when string, want bool) {
		t.Helper()
		if got, err := InUse(pin, Net); got != want || err != nil {
			t.Errorf("%s: %t, %v; want %t", when, got, err, want)
		}
	}
	want("nobody joined", false)
	cmd := exec.Command("nsenter", "--net="+pin, "sh", "-c", "echo; read end")
	end, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	want("a process lives in it", true)
	end.Close()
	cmd.Wait() // read fails at the end of its input
	want("the process ended", false)
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
	want("nothing is pinned", false)
}
