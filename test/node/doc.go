// Package node boots a virtual machine that is a node as users have them (cgroup
// v2, systemd, AppArmor), installs the Debian package in it, and runs the suites
// there. It is built with the tag node alone: make test-node.
package node
