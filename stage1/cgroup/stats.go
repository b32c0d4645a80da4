package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Stats is what a group uses. Numbers of controllers that the node does not
// have are zero. Sizes are bytes.
type Stats struct {
	Timestamp time.Time
	CPU       CPUStats
	Memory    MemoryStats
	Swap      SwapStats
	PIDs      PIDStats
}

// CPUStats is the time that the group's processes have run, of all processors together.
type CPUStats struct {
	UsageNano uint64
}

// MemoryStats is the memory that the group is charged for.
type MemoryStats struct {
	Usage uint64
	// WorkingSet is Usage without the file cache that nobody touched lately:
	// what the kubelet evicts by.
	WorkingSet uint64
	// RSS is anonymous memory, Cache that of files.
	RSS, Cache              uint64
	PageFaults, MajorFaults uint64
	// Limit is zero where there is none; Available is Limit less WorkingSet, and
	// zero where there is no limit.
	Limit, Available uint64
}

// SwapStats is the swap that the group uses and may use; a limit of zero is none.
type SwapStats struct {
	Usage, Limit uint64
}

// PIDStats is the number of tasks in the group; a limit of zero is none.
type PIDStats struct {
	Current, Limit uint64
}

// unlimited is where v1 begins to mean "no limit": it says so with the largest
// multiple of the page size that fits, whatever that is.
const unlimited = 1 << 62

// Stats reads what the group uses now. A group that does not exist is ErrNotFound.
func (h *Hierarchy) Stats(path string) (Stats, error) {
	if err := check(path); err != nil {
		return Stats{}, err
	}
	if !h.Exists(path) {
		return Stats{}, fmt.Errorf("statistics of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	s := Stats{Timestamp: time.Now(), CPU: CPUStats{UsageNano: h.cpu(path)}, PIDs: h.pids(path)}
	dir, v2 := h.dir("memory", path)
	switch {
	case dir == "":
	case v2:
		s.Memory, s.Swap = memoryV2(dir)
	default:
		s.Memory, s.Swap = memoryV1(dir)
	}
	m := &s.Memory
	if m.Limit > m.WorkingSet {
		m.Available = m.Limit - m.WorkingSet
	}
	return s, nil
}

func (h *Hierarchy) cpu(path string) uint64 {
	dir, v2 := h.dir("cpuacct", path)
	if dir == "" {
		return 0
	}
	if v2 {
		stat, _ := keyed(filepath.Join(dir, "cpu.stat"))
		return stat["usage_usec"] * 1000
	}
	return number(dir, "cpuacct.usage")
}

func (h *Hierarchy) pids(path string) PIDStats {
	dir, _ := h.dir("pids", path)
	if dir == "" {
		return PIDStats{}
	}
	return PIDStats{Current: number(dir, "pids.current"), Limit: number(dir, "pids.max")}
}

func memoryV1(dir string) (MemoryStats, SwapStats) {
	stat, _ := keyed(filepath.Join(dir, "memory.stat"))
	m := MemoryStats{
		Usage:       number(dir, "memory.usage_in_bytes"),
		RSS:         stat["total_rss"],
		Cache:       stat["total_cache"],
		PageFaults:  stat["total_pgfault"],
		MajorFaults: stat["total_pgmajfault"],
		Limit:       limit(stat["hierarchical_memory_limit"]),
	}
	m.WorkingSet = less(m.Usage, stat["total_inactive_file"])
	s := SwapStats{Usage: stat["total_swap"]}
	// v1 limits memory and swap together.
	if both := limit(stat["hierarchical_memsw_limit"]); both != 0 {
		s.Limit = less(both, m.Limit)
	}
	return m, s
}

func memoryV2(dir string) (MemoryStats, SwapStats) {
	stat, _ := keyed(filepath.Join(dir, "memory.stat"))
	m := MemoryStats{
		Usage:       number(dir, "memory.current"),
		RSS:         stat["anon"],
		Cache:       stat["file"],
		PageFaults:  stat["pgfault"],
		MajorFaults: stat["pgmajfault"],
		Limit:       number(dir, "memory.max"),
	}
	m.WorkingSet = less(m.Usage, stat["inactive_file"])
	return m, SwapStats{Usage: number(dir, "memory.swap.current"), Limit: number(dir, "memory.swap.max")}
}

func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func limit(n uint64) uint64 {
	if n >= unlimited {
		return 0
	}
	return n
}

// number reads a file that holds one number; a missing file and "max" are zero.
func number(dir, file string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
