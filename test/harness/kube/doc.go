// Package kube is what the tests have of Kubernetes: the real kubelet, its HTTP
// API by kubectl's client, and the kubelet's client of CRI.
//
// It is apart from the harness because these take minutes to compile, which the
// demo and the benchmarks need not wait for.
package kube
