// Package podargs reads the command line of prepare and run, and makes a pod
// manifest of it. The grammar is rkt's:
//
//	IMAGE [APPFLAG]... [-- ARG... [---]] [IMAGE ...]
//
// A flag of an app binds to the nearest image before it; flags of the pod and
// global flags may stand anywhere. Reading ends with a [Request] in which
// everything that can be judged without the images has been judged, so that
// nothing is fetched for a command line that cannot work. Once the images are
// known, [Request.Manifest] merges them with what the command line overrides.
package podargs

import (
	"github.com/appc/spec/schema"
	"github.com/appc/spec/schema/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-cri/gantry/stage0"
)

// Request is a command line that was read and found sound.
type Request struct {
	// Apps are in the order of the command line; there is at least one.
	Apps []App
	// Volumes have distinct names.
	Volumes []types.Volume
	// Ports name ports of the apps; which app has them is known with the images.
	Ports []types.ExposedPort
	// PullPolicy says when the registry is asked.
	PullPolicy stage0.PullPolicy
	// Rootfs is RootfsCopy with --no-overlay.
	Rootfs stage0.Rootfs
	// PrivateUsers asks for a user namespace.
	PrivateUsers bool
	// Quiet silences progress and notes.
	Quiet bool

	mounts     []schema.Mount    // for every app
	platform   *ocispec.Platform // of the apps that do not say it themselves
	setEnv     types.Environment
	fileEnv    types.Environment
	inheritEnv bool
}

// App is one image of the command line and what it overrides in it.
type App struct {
	// Name is the app's name: --name, or made of the image's name. That of an ACI
	// without --name is empty until Request.Manifest fills it in.
	Name types.ACName
	// Image is the image as it was spelt, for records and messages.
	Image string
	// From is what that means.
	From Image
	// Platform is that of the image; nil is this machine's, or, of an ACI, its own.
	Platform *ocispec.Platform

	exec         *string // --exec: one word that replaces the image's
	args         []string
	hasArgs      bool
	user, group  string
	gids         []int
	workingDir   string
	readOnly     bool
	env          types.Environment
	annotations  types.UserAnnotations
	labels       types.UserLabels
	mounts       []schema.Mount
	retain, drop []string // capabilities
}
