package cgroup

import (
	"context"
	"errors"
)

// monitorParent holds the groups of the monitors; monitorSlice does for systemd.
const (
	monitorParent = "/gantry-monitor"
	monitorSlice  = "system.slice"
)

// Monitor is the cgroup of one container's monitor: neither the pod's, which
// would be charged for it and might have it killed, nor the daemon's, which the
// monitor must outlive.
type Monitor struct {
	h      *Hierarchy
	driver Driver
	unit   string
	// Path is the group's place relative to the mount points.
	Path string
}

// Monitor names the group of the container's monitor. Nothing is made yet.
func (h *Hierarchy) Monitor(d Driver, id string) *Monitor {
	if d == Systemd {
		unit := "gantry-monitor-" + id + ".scope"
		return &Monitor{h: h, driver: d, unit: unit, Path: "/" + monitorSlice + "/" + unit}
	}
	return &Monitor{h: h, driver: d, Path: monitorParent + "/" + id}
}

// Place makes the group and moves the process into it. With cgroupfs on v1
// these are the hierarchies by which systemd stops a unit (name=systemd) and by
// which memory and processes are charged; a monitor needs no more.
func (m *Monitor) Place(ctx context.Context, pid int) error {
	if m.driver == Systemd {
		return startScope(ctx, m.unit, pid)
	}
	var err error
	if len(m.h.v1) == 0 {
		err = m.h.Create(m.Path)
	} else {
		err = m.h.createIn(m.Path, []string{namedSystemd, "memory", "pids"})
	}
	if err != nil {
		return err
	}
	if !m.h.Exists(m.Path) { // none of the three is mounted: nothing to be kept out of
		return nil
	}
	return m.h.AddProcess(m.Path, pid)
}

// Kill ends the monitor and what it started, as Hierarchy.Kill does.
func (m *Monitor) Kill(ctx context.Context) error { return m.h.Kill(ctx, m.Path) }

// Remove removes the group, and with systemd the scope. It is idempotent. systemd is
// asked, and does not only see that the last process has gone: the kernel tells of that
// 10 ms late when the group was filled just before (cgroup_file_notify), and never when
// the group is removed within that time; the scope would stay for good.
func (m *Monitor) Remove(ctx context.Context) error {
	if m.driver == Systemd {
		return errors.Join(stopUnit(ctx, m.unit), m.h.Remove(ctx, m.Path))
	}
	err := m.h.Remove(ctx, m.Path)
	m.h.RemoveEmpty(monitorParent)
	return err
}
