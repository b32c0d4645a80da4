package podargs

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
)

// parsePort reads NAME:[HOSTIP:]HOSTPORT; an IPv6 address stands in brackets.
func parsePort(s string) (types.ExposedPort, error) {
	var port types.ExposedPort
	name, rest, ok := strings.Cut(s, ":")
	if !ok {
		return port, invalid("a port is NAME:[HOSTIP:]HOSTPORT")
	}
	acName, err := types.NewACName(name)
	if err != nil {
		return port, invalid("%q is not a port name: %v", name, err)
	}
	port.Name = *acName
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		ip := rest[:i]
		if strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]") {
			ip = ip[1 : len(ip)-1]
		} else if strings.Contains(ip, ":") {
			return port, invalid("%q: an IPv6 address stands in brackets", ip)
		}
		if port.HostIP = net.ParseIP(ip); port.HostIP == nil {
			return port, invalid("%q is not a valid IP", ip)
		}
		rest = rest[i+1:]
	}
	n, err := strconv.ParseUint(rest, 10, 16)
	if err != nil || n == 0 {
		return port, invalid("%q is not a host port: want 1 to 65535", rest)
	}
	port.HostPort = uint(n)
	return port, nil
}

// checkPorts finds exact repetitions: whether two ports clash is known with the
// images, which know the protocols.
func checkPorts(ports []types.ExposedPort) error {
	for i, a := range ports {
		for _, b := range ports[:i] {
			if a.Name == b.Name && a.HostPort == b.HostPort && sameHost(a.HostIP, b.HostIP) {
				return invalid("port %s is mapped to %s twice", a.Name, hostAddress(a))
			}
		}
	}
	return nil
}

// bindPorts finds the app port of every exposed port and refuses two that would
// listen on one host address.
func bindPorts(exposed []types.ExposedPort, apps schema.AppList) ([]types.ExposedPort, error) {
	bound := []types.ExposedPort{}
	for _, e := range exposed {
		p, err := findPort(e.Name, apps)
		if err != nil {
			return nil, err
		}
		e.PodPort = &p
		for _, b := range bound {
			if b.PodPort.Protocol == p.Protocol && b.HostPort == e.HostPort && sameHost(b.HostIP, e.HostIP) {
				return nil, invalid("port %s/%s already mapped to pod port %d", hostAddress(e), p.Protocol, b.PodPort.Port)
			}
		}
		bound = append(bound, e)
	}
	return bound, nil
}

func findPort(name types.ACName, apps schema.AppList) (types.Port, error) {
	var found []types.Port
	for _, app := range apps {
		for _, p := range app.App.Ports {
			if p.Name == name {
				found = append(found, p)
			}
		}
	}
	switch len(found) {
	case 0:
		return types.Port{}, invalid("port name %q could not be found in any apps", name)
	case 1:
		return found[0], nil
	default:
		return types.Port{}, invalid("port name %q is defined in multiple apps", name)
	}
}

// sameHost says whether listening on both addresses would clash: they are equal
// or one of them is every address.
func sameHost(a, b net.IP) bool {
	every := func(ip net.IP) bool { return ip == nil || ip.IsUnspecified() }
	return every(a) || every(b) || a.Equal(b)
}

func hostAddress(e types.ExposedPort) string {
	ip := e.HostIP
	if ip == nil {
		ip = net.IPv4zero
	}
	return net.JoinHostPort(ip.String(), fmt.Sprint(e.HostPort))
}
