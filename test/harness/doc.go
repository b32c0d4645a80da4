// Package harness runs what the end-to-end tests need around Gantry: a real
// registry, the daemon and its command line, CNI networks, Prometheus, and a
// check that nothing is left behind. The kubelet is in package kube.
//
// Everything lies in directories of its own, listens on loopback only, is ended
// by its process id, and is ended when the test is.
package harness
