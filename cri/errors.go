package cri

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// registryUnavailable begins the text of a pull that found no registry. The
// kubelet strips the code Unknown from PullImage errors, no other, and then
// looks for this word at the first byte (spec/kubelet.md, section 8).
const registryUnavailable = "RegistryUnavailable"

// classes is the whole mapping from a class of failure to a gRPC code; the first
// that fits decides.
var classes = []struct {
	err  error
	code codes.Code
}{
	{errdefs.ErrNoSpace, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{errdefs.ErrInvalid, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrExists, codes.AlreadyExists},
	{errdefs.ErrState, codes.FailedPrecondition},
	// Never Unimplemented: clients turn whole features off when they see that.
	{errdefs.ErrUnsupported, codes.FailedPrecondition},
	{errdefs.ErrBusy, codes.Unavailable},
	{errdefs.ErrDenied, codes.PermissionDenied},
	{errdefs.ErrUnverified, codes.DataLoss},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// toStatus gives an error of the rooms below its gRPC code and keeps its whole
// text. An error that has a code already, from the streaming library, keeps it.
// When the caller's own context has ended, that decides, whatever a library
// made of it.
func toStatus(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ GRPCStatus() *status.Status }
	if errors.As(err, &coded) {
		return coded.GRPCStatus().Err()
	}
	if cerr := ctx.Err(); cerr != nil && errors.Is(err, cerr) {
		return status.FromContextError(cerr).Err()
	}
	if method == runtimeapi.ImageService_PullImage_FullMethodName && errors.Is(err, errdefs.ErrUnavailable) {
		return status.Error(codes.Unknown, fmt.Sprintf("%s: %v", registryUnavailable, err))
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return codes.Internal
}
