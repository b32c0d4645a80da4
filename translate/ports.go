package translate

import (
	"fmt"
	"net"
	"strings"

	"github.com/appc/spec/schema/types"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func checkPorts(ports []*runtimeapi.PortMapping) error {
	for i, p := range ports {
		field := fmt.Sprintf("port_mappings[%d]", i)
		switch {
		case p.GetContainerPort() < 1 || p.GetContainerPort() > 65535:
			return invalid(field+".container_port", "%d is not between 1 and 65535", p.GetContainerPort())
		case p.GetHostPort() < 0 || p.GetHostPort() > 65535:
			return invalid(field+".host_port", "%d is not between 0 and 65535", p.GetHostPort())
		case p.GetHostIp() != "" && net.ParseIP(p.GetHostIp()) == nil:
			return invalid(field+".host_ip", "%q is not an IP address", p.GetHostIp())
		case !knownEnum(p.GetProtocol()):
			return unsupported(field+".protocol", "number %d", p.GetProtocol())
		}
	}
	return nil
}

// toPorts returns the appc ports of checked mappings, and of each mapping what
// appc cannot say: the spelling of an address that is not the usual one.
func toPorts(mappings []*runtimeapi.PortMapping) ([]types.ExposedPort, []*runtimeapi.PortMapping) {
	ports, taken := []types.ExposedPort{}, names{}
	var rest []*runtimeapi.PortMapping
	for i, m := range mappings {
		protocol := strings.ToLower(m.GetProtocol().String())
		p := types.Port{Protocol: protocol, Port: uint(m.GetContainerPort()), Count: 1}
		p.Name = taken.unique(types.ACName(fmt.Sprintf("%d-%s", p.Port, protocol)))
		e := types.ExposedPort{Name: p.Name, HostPort: uint(m.GetHostPort()), PodPort: &p}
		if m.GetHostIp() != "" {
			e.HostIP = net.ParseIP(m.GetHostIp())
		}
		ports = append(ports, e)
		left := &runtimeapi.PortMapping{}
		if e.HostIP != nil && e.HostIP.String() != m.GetHostIp() {
			left.HostIp = m.GetHostIp()
		}
		rest = align(rest, i, left)
	}
	return ports, rest
}

// fromPorts is the inverse of toPorts.
func fromPorts(ports []types.ExposedPort, rest []*runtimeapi.PortMapping) ([]*runtimeapi.PortMapping, error) {
	var mappings []*runtimeapi.PortMapping
	for i, e := range ports {
		m := at(rest, i, &runtimeapi.PortMapping{})
		if e.PodPort == nil {
			return nil, fmt.Errorf("port %s has no podPort: %w", e.Name, errdefs.ErrInvalid)
		}
		number, ok := runtimeapi.Protocol_value[strings.ToUpper(e.PodPort.Protocol)]
		if !ok {
			return nil, fmt.Errorf("port %s: protocol %q: %w", e.Name, e.PodPort.Protocol, errdefs.ErrInvalid)
		}
		m.Protocol = runtimeapi.Protocol(number)
		m.ContainerPort = int32(e.PodPort.Port)
		m.HostPort = int32(e.HostPort)
		if m.HostIp == "" && e.HostIP != nil {
			m.HostIp = e.HostIP.String()
		}
		mappings = append(mappings, m)
	}
	return mappings, nil
}

// align puts the rest of item i into a list that is as short as it can be: a list
// stands for one that goes on with empty messages.
func align[M proto.Message](list []M, i int, left M) []M {
	if proto.Size(left) == 0 {
		return list
	}
	for len(list) < i {
		list = append(list, left.ProtoReflect().New().Interface().(M))
	}
	return append(list, left)
}

// at returns item i of a list that align made, or empty.
func at[M proto.Message](list []M, i int, empty M) M {
	if i < len(list) {
		return list[i]
	}
	return empty
}
