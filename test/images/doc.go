// Package images makes the images that the tests, the demo and the benchmarks
// run, out of Debian's packages and of files of this machine. Nothing is
// downloaded ready-made.
//
// [Busybox] is one small layer, [Web] several layers with everything that makes
// layers hard (see its comment), [Big] a large one for benchmarks. [Index] wraps
// an image for two platforms and [Push] sends any of them to a registry.
package images
