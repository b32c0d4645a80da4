package namespace

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// InterfaceStat is what the kernel counted on one interface since it was made.
type InterfaceStat struct {
	Name                 string
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
	RxErrors, TxErrors   uint64
	RxDropped, TxDropped uint64
}

// InterfaceStats returns the counters of the interfaces of a network namespace but
// lo, by interface index. An empty path is the caller's own namespace;
// ErrNotFound says that no namespace is there.
func InterfaceStats(netns string) ([]InterfaceStat, error) {
	var links []netlink.Link
	err := Do(netns, func() (err error) {
		links, err = netlink.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			links, err = netlink.LinkList() // an interface came or went meanwhile
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("interface statistics: %w", err)
	}
	var stats []InterfaceStat
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
			continue
		}
		s := a.Statistics
		stats = append(stats, InterfaceStat{
			Name: a.Name, RxBytes: s.RxBytes, TxBytes: s.TxBytes, RxPackets: s.RxPackets, TxPackets: s.TxPackets,
			RxErrors: s.RxErrors, TxErrors: s.TxErrors, RxDropped: s.RxDropped, TxDropped: s.TxDropped,
		})
	}
	return stats, nil
}
