package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// Configuration is the node's network configuration as it is today.
type Configuration struct {
	// File it was read from.
	File string
	// Name is the network's name.
	Name string
	// Plugins are the types of the list's plugins in the order of ADD.
	Plugins []string
	// List is the configuration list; what lay in files of its own is inlined.
	List json.RawMessage

	list *libcni.NetworkConfigList
}

// Load reads the configuration that counts: the first in lexical order among
// *.conflist, *.conf and *.json. A first one that is broken is an error: to take the
// second would silently be another network. The message says what is
// missing; whether the plugins are there is for Status to say.
func (n *Network) Load() (Configuration, error) {
	entries, err := os.ReadDir(n.confDir)
	if errors.Is(err, os.ErrNotExist) {
		return Configuration{}, fmt.Errorf("no CNI configuration: directory %s does not exist", n.confDir)
	}
	if err != nil {
		return Configuration{}, fmt.Errorf("no CNI configuration: %w", err)
	}
	for _, e := range entries { // sorted by name
		if e.IsDir() || !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		file := filepath.Join(n.confDir, e.Name())
		c, err := loadFile(file)
		if err != nil {
			return Configuration{}, fmt.Errorf("CNI configuration %s: %w", file, err)
		}
		return c, nil
	}
	return Configuration{}, fmt.Errorf("no CNI configuration: no *.conflist, *.conf or *.json file in %s", n.confDir)
}

func loadFile(file string) (Configuration, error) {
	list, err := parseFile(file)
	if err != nil {
		return Configuration{}, err
	}
	if v := list.CNIVersion; v != "" && !slices.Contains(version.All.SupportedVersions(), v) {
		return Configuration{}, fmt.Errorf("cniVersion %q is not supported, the newest is %s", v, version.Current())
	}
	raw, err := inline(list)
	if err != nil {
		return Configuration{}, err
	}
	c := Configuration{File: file, Name: list.Name, List: raw, list: list}
	for _, p := range list.Plugins {
		c.Plugins = append(c.Plugins, p.Network.Type)
	}
	return c, nil
}

func parseFile(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// A single plugin's configuration: a form that CNI has deprecated and add-ons still write.
	one, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return nil, err
	}
	if one.Network.Name == "" {
		return nil, errors.New("no name")
	}
	return libcni.ConfListFromConf(one) //nolint:staticcheck // the form is deprecated, not gone
}

// inline puts every plugin into the list: libcni also reads plugins from files of
// their own beside the list, and those may be gone or changed at DEL.
func inline(list *libcni.NetworkConfigList) (json.RawMessage, error) {
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &conf); err != nil {
		return nil, err
	}
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, p := range list.Plugins {
		plugins[i] = p.Bytes
	}
	var err error
	if conf["plugins"], err = json.Marshal(plugins); err != nil {
		return nil, err
	}
	return json.Marshal(conf)
}

// capabilities of the list: what some plugin of it declares to understand.
func (c Configuration) capabilities() map[string]bool {
	caps := map[string]bool{}
	for _, p := range c.list.Plugins {
		for name, on := range p.Network.Capabilities {
			caps[name] = caps[name] || on
		}
	}
	return caps
}

// Status is nil when pods can be attached: a configuration that can be read, whose
// plugins are on the node. Else its text says exactly what is missing: it is the message of
// NetworkReady. It costs a few small reads and runs no plugin.
func (n *Network) Status() error {
	c, err := n.Load()
	if err != nil {
		return err
	}
	var missing []string
	need := func(plugin string) {
		if plugin == "" || slices.Contains(missing, plugin) {
			return
		}
		if _, err := findPlugin(plugin, n.binDirs); err != nil {
			missing = append(missing, plugin)
		}
	}
	for _, p := range c.list.Plugins {
		need(p.Network.Type)
		need(p.Network.IPAM.Type)
	}
	if len(missing) > 0 {
		return fmt.Errorf("CNI configuration %s: plugin %s not found in %s",
			c.File, strings.Join(missing, ", "), strings.Join(n.binDirs, ", "))
	}
	return nil
}
