package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// noSuchUnit is systemd's answer about a unit that nobody has started.
const noSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"

// StopSlice has systemd stop a slice, which lies at path, with all that is below
// it, and removes the group. systemd makes a slice with the first unit in it and
// keeps it when the last has gone. It is idempotent. Kill what is in it before:
// systemd waits for processes longer than anybody does for this.
func (h *Hierarchy) StopSlice(ctx context.Context, path string) error {
	if !h.Exists(path) {
		return nil
	}
	if err := stopUnit(ctx, filepath.Base(path)); err != nil {
		return err
	}
	return h.Remove(ctx, path)
}

// stopUnit has systemd stop a unit and waits until it has. That there is none is no
// error.
func stopUnit(ctx context.Context, unit string) error {
	err := change(ctx, func(conn *systemd.Conn, done chan<- string) error {
		_, err := conn.StopUnitContext(ctx, unit, "replace", done)
		var answer dbus.Error
		if errors.As(err, &answer) && answer.Name == noSuchUnit {
			done <- "done"
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("stop %s: %w", unit, err)
	}
	return nil
}

// startScope asks systemd for a transient scope around the process and waits for the answer.
func startScope(ctx context.Context, unit string, pid int) error {
	err := change(ctx, func(conn *systemd.Conn, done chan<- string) error {
		// "replace": a scope of that name is left from a monitor that died in its start.
		_, err := conn.StartTransientUnitContext(ctx, unit, "replace", scopeProperties(unit, pid), done)
		return err
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", unit, err)
	}
	return nil
}

// change asks systemd for a job and waits until that is done.
func change(ctx context.Context, ask func(conn *systemd.Conn, done chan<- string) error) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return fmt.Errorf("cgroup driver %q: this node does not run systemd: %w", Systemd, errdefs.ErrUnsupported)
	}
	conn, err := systemd.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if err := ask(conn, done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd says %q", result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func scopeProperties(unit string, pid int) []systemd.Property {
	return []systemd.Property{
		systemd.PropDescription("gantry container monitor " + unit),
		systemd.PropSlice(monitorSlice),
		systemd.PropPids(uint32(pid)),
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
		// A scope that failed must not keep its name.
		{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")},
	}
}
