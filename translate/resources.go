package translate

import (
	"fmt"
	"maps"
	"slices"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// cfsPeriod is the period in µs in which a CPU limit of appc is counted.
const cfsPeriod = 100000

// Resources returns the OCI limits of a CRI message. A value of 0 is one that is
// not set, as in UpdateContainerResources. oom_score_adj is no limit and left out.
func Resources(r *runtimeapi.LinuxContainerResources, n Node) (*specs.LinuxResources, error) {
	if err := checkResources(r); err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{
			Quota:  optional(r.GetCpuQuota()),
			Period: optional(uint64(r.GetCpuPeriod())),
			Shares: optional(uint64(r.GetCpuShares())),
			Cpus:   r.GetCpusetCpus(),
			Mems:   r.GetCpusetMems(),
		},
		Memory: memory(r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes(), n),
	}
	for i, h := range r.GetHugepageLimits() {
		switch {
		case h.GetLimit() == 0:
			// The kubelet sends 0 for every size, on nodes without the controller too;
			// the pod's cgroup, which it keeps itself, is where none are to be had.
		case slices.Contains(n.HugepageSizes, h.GetPageSize()):
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		default:
			return nil, unsupported(fmt.Sprintf("linux.resources.hugepage_limits[%d]", i), "the node cannot limit pages of %q", h.GetPageSize())
		}
	}
	if len(r.GetUnified()) > 0 {
		if !n.CgroupV2 {
			return nil, unsupported("linux.resources.unified", "the node has cgroup v1")
		}
		out.Unified = maps.Clone(r.GetUnified())
	}
	return trim(out), nil
}

// optional returns nil for 0, CRI's "not specified".
func optional[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}

// memory limits memory, and memory and swap together. Without a swap limit of its
// own a container gets no swap.
func memory(limit, swap int64, n Node) *specs.LinuxMemory {
	m := &specs.LinuxMemory{Limit: optional(limit)}
	if !n.SwapAccounting {
		return m
	}
	if swap == 0 {
		swap = limit
	}
	m.Swap = optional(swap)
	return m
}

// trim leaves out sections that say nothing.
func trim(r *specs.LinuxResources) *specs.LinuxResources {
	if *r.CPU == (specs.LinuxCPU{}) {
		r.CPU = nil
	}
	if *r.Memory == (specs.LinuxMemory{}) {
		r.Memory = nil
	}
	return r
}

// appResources returns the limits of an app: CRI's with what the isolators carry of
// them, or the isolators alone.
func appResources(ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig, n Node) (*specs.LinuxResources, error) {
	if c != nil {
		if err := restoreResources(ra, c); err != nil {
			return nil, err
		}
		return Resources(c.GetLinux().GetResources(), n)
	}
	limit, _, err := memoryOf(ra.App.Isolators)
	if err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: memory(limit, 0, n)}
	if v, ok := value[*types.ResourceCPU](ra.App.Isolators, types.ResourceCPUName); ok {
		if err := cpuLimits(out.CPU, v); err != nil {
			return nil, err
		}
	}
	if v, ok := value[*types.LinuxCPUShares](ra.App.Isolators, types.LinuxCPUSharesName); ok {
		out.CPU.Shares = optional(uint64(*v))
	}
	return trim(out), nil
}

// cpuLimits reads resource/cpu: the limit is a quota, the request a weight, 1024 a
// CPU. What is not above nothing says nothing.
func cpuLimits(cpu *specs.LinuxCPU, v *types.ResourceCPU) error {
	const most = 1 << 20 // CPUs; keeps the products below in range
	if l := v.Limit(); l != nil && l.Sign() > 0 {
		if l.CmpInt64(most) > 0 {
			return fmt.Errorf("isolator %s: a limit of %s CPUs: %w", types.ResourceCPUName, l, errdefs.ErrInvalid)
		}
		// The kernel takes no quota below 1 ms.
		cpu.Quota = optional(max(l.MilliValue()*cfsPeriod/1000, 1000))
		cpu.Period = optional(uint64(cfsPeriod))
	}
	if r := v.Request(); r != nil && r.Sign() > 0 {
		if r.CmpInt64(most) > 0 {
			return fmt.Errorf("isolator %s: a request of %s CPUs: %w", types.ResourceCPUName, r, errdefs.ErrInvalid)
		}
		cpu.Shares = optional(uint64(min(max(r.MilliValue()*1024/1000, 2), 262144)))
	}
	return nil
}

// oomScoreAdj returns what an app's isolator asks for, 0 without: a process must not
// inherit the protection of the monitor that starts it.
func oomScoreAdj(ra *schema.RuntimeApp) int {
	if v, ok := value[*types.LinuxOOMScoreAdj](ra.App.Isolators, types.LinuxOOMScoreAdjName); ok {
		return int(*v)
	}
	return 0
}
