// Package files makes the files that the containers of a pod share: resolv.conf,
// hosts, hostname and the tmpfs of /dev/shm. It knows paths and values, not
// pods. Every call may be repeated. Nothing is synced: the files live in
// the run directory and are made again after a boot.
package files

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unicode"

	"github.com/gantry-cri/gantry/stage0/durable"
	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// DNS is what resolv.conf says, as CRI's DNSConfig: written exactly as given.
type DNS struct {
	Servers, Searches, Options []string
}

// The node's own files, and systemd-resolved's list of the real name servers.
const (
	hostResolvConf     = "/etc/resolv.conf"
	resolvedResolvConf = "/run/systemd/resolve/resolv.conf"
	hostHosts          = "/etc/hosts"
)

// WriteResolvConf writes the resolv.conf of a pod. dns nil means that nothing was
// asked for: the node's file is copied, without its loopback servers' stub
// where systemd-resolved tells the real ones (a stub cannot be reached from the pod's
// network). An empty dns is an answer too: an empty file. ErrInvalid when a
// value would make more than a word of the file.
func WriteResolvConf(path string, dns *DNS) error {
	var content []byte
	var err error
	if dns == nil {
		content, err = nodeResolvConf(hostResolvConf, resolvedResolvConf)
	} else {
		content, err = dns.render()
	}
	if err != nil {
		return fmt.Errorf("resolv.conf: %w", err)
	}
	return write(path, content)
}

func (d *DNS) render() ([]byte, error) {
	for _, v := range [][]string{d.Servers, d.Searches, d.Options} {
		for _, word := range v {
			if err := checkWord(word); err != nil {
				return nil, err
			}
		}
	}
	var b bytes.Buffer
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.Bytes(), nil
}

func checkWord(w string) error {
	if w == "" || strings.ContainsFunc(w, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("%q is not one word: %w", w, errdefs.ErrInvalid)
	}
	return nil
}

// nodeResolvConf reads the node's file, or the resolver's when the node's
// names only servers on its own loopback. A node without one gives an empty file.
func nodeResolvConf(path, resolved string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if !loopbackOnly(content) {
		return content, nil
	}
	if real, err := os.ReadFile(resolved); err == nil {
		return real, nil
	}
	return content, nil
}

func loopbackOnly(content []byte) bool {
	servers := 0
	for s := bufio.NewScanner(bytes.NewReader(content)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err != nil || !a.IsLoopback() {
			return false
		}
		servers++
	}
	return servers > 0
}

// WriteHosts writes /etc/hosts for a pod that has a network of its own: loopback's
// names, then every address with the hostname. ErrInvalid when the hostname is not one word.
func WriteHosts(path, hostname string, ips []netip.Addr) error {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if hostname != "" {
		if err := checkWord(hostname); err != nil {
			return fmt.Errorf("hosts: hostname %w", err)
		}
		if len(ips) == 0 {
			// As Debian does: the own name must resolve without a network, too.
			ips = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 1, 1})}
		}
		for _, ip := range ips {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
		}
	}
	return write(path, b.Bytes())
}

// CopyHosts writes the node's /etc/hosts, for a pod on the node's network.
func CopyHosts(path string) error {
	content, err := os.ReadFile(hostHosts)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("hosts: %w", err)
	}
	return write(path, content)
}

// WriteHostname writes /etc/hostname; empty means the node's own name.
func WriteHostname(path, hostname string) error {
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return fmt.Errorf("hostname: %w", err)
		}
	}
	if err := checkWord(hostname); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	return write(path, []byte(hostname+"\n"))
}

// write replaces the file; every user of the pod may read it. A container that
// has the old file mounted keeps the old one.
func write(path string, content []byte) error {
	return durable.WriteFile(path, content, 0o644, durable.Kill)
}
