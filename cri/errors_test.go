package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

func TestToStatus(t *testing.T) {
	const (
		pull = runtimeapi.ImageService_PullImage_FullMethodName
		run  = runtimeapi.RuntimeService_RunPodSandbox_FullMethodName
	)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name   string
		ctx    context.Context //nolint:containedctx // a case's argument
		method string
		err    error
		code   codes.Code
		begins string
	}{
		{"nil", t.Context(), run, nil, codes.OK, ""},
		{"invalid", t.Context(), run, errdefs.ErrInvalid, codes.InvalidArgument, "doing it: invalid"},
		{"not found", t.Context(), run, errdefs.ErrNotFound, codes.NotFound, "doing it: not found"},
		{"exists", t.Context(), run, errdefs.ErrExists, codes.AlreadyExists, "doing it"},
		{"state", t.Context(), run, errdefs.ErrState, codes.FailedPrecondition, "doing it"},
		{"unsupported is never Unimplemented", t.Context(), run, errdefs.ErrUnsupported, codes.FailedPrecondition, "doing it"},
		{"busy", t.Context(), run, errdefs.ErrBusy, codes.Unavailable, "doing it"},
		{"denied", t.Context(), pull, errdefs.ErrDenied, codes.PermissionDenied, "doing it"},
		{"digest mismatch", t.Context(), pull, errdefs.ErrUnverified, codes.DataLoss, "doing it: verification failed"},
		{"no registry", t.Context(), pull, errdefs.ErrUnavailable, codes.Unknown, "RegistryUnavailable: doing it"},
		{"no registry, by a deadline of ours", t.Context(), pull, errors.Join(errdefs.ErrUnavailable, context.DeadlineExceeded), codes.Unknown, "RegistryUnavailable: doing it"},
		{"unavailable elsewhere", t.Context(), run, errdefs.ErrUnavailable, codes.Unavailable, "doing it"},
		{"disk full", t.Context(), run, errdefs.ErrNoSpace, codes.ResourceExhausted, "doing it"},
		{"disk full, unclassed", t.Context(), run, syscall.ENOSPC, codes.ResourceExhausted, "doing it"},
		{"our deadline", t.Context(), run, context.DeadlineExceeded, codes.DeadlineExceeded, "doing it"},
		{"our cancel", t.Context(), run, context.Canceled, codes.Canceled, "doing it"},
		{"the caller has gone", ended, pull, errors.Join(errdefs.ErrUnavailable, context.Canceled), codes.Canceled, "context canceled"},
		{"coded already", t.Context(), run, status.Error(codes.ResourceExhausted, "too many"), codes.ResourceExhausted, "too many"},
		{"anything else", t.Context(), run, errors.New("boom"), codes.Internal, "doing it: boom"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.err
			if _, coded := status.FromError(err); !coded {
				err = fmt.Errorf("doing it: %w", err)
			}
			got := status.Convert(toStatus(tt.ctx, tt.method, err))
			if got.Code() != tt.code || !strings.HasPrefix(got.Message(), tt.begins) {
				t.Errorf("got %v %q, want %v %q…", got.Code(), got.Message(), tt.code, tt.begins)
			}
		})
	}
}
