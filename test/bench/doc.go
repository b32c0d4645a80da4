// Package bench measures Gantry beside containerd, podman, tar and cp: the same
// images from the same registry, one program after the other in each round, each round
// of what writes on a fresh file system. It keeps every measurement (package result);
// the program report computes from them what docs/benchmarks.md tells. make bench
// runs both.
package bench
