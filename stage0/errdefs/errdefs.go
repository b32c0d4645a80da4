// Package errdefs names the classes of failure that a caller of the pipeline
// may want to tell apart. Producers wrap one of them with %w; consumers test
// with errors.Is. The mapping to gRPC codes lives in package cri alone.
package errdefs

import "errors"

var (
	// ErrInvalid says that what was asked for can never work as it was written.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound says that the named object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists says that another object holds the name or the metadata.
	ErrExists = errors.New("already exists")
	// ErrState says that the object is in a state that does not allow the call.
	ErrState = errors.New("wrong state")
	// ErrBusy says that somebody else works on the object; asking again later may succeed.
	ErrBusy = errors.New("busy")
	// ErrUnverified says that bytes are not those that were promised: a digest,
	// a size or a signature does not match.
	ErrUnverified = errors.New("verification failed")
	// ErrUnavailable says that a registry could not be reached or did not answer in time.
	ErrUnavailable = errors.New("unavailable")
	// ErrDenied says that a registry refused the credentials, or wants some.
	ErrDenied = errors.New("access denied")
	// ErrNoSpace says that the disk or a quota is full.
	ErrNoSpace = errors.New("no space left")
	// ErrUnsupported says that this node or this version cannot do what was asked.
	ErrUnsupported = errors.New("not supported")
)
