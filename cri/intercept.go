package cri

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/translate"
)

// CallObserver is told of every call that was answered. Implementations must be
// safe for concurrent use and quick.
type CallObserver interface {
	// CallDone is given the method's bare name, its gRPC code as a word, and how long it took.
	CallDone(method, code string, took time.Duration)
	// UnknownField is told of each field of a newer CRI that a request carried
	// and this version ignored; message is the protobuf message's name.
	UnknownField(message string)
}

// Interceptors wrap every call of both services once: they put a logger with the
// method into the context, turn errors into gRPC codes, count, and keep a panic
// of one call from ending the daemon.
type Interceptors struct {
	log      klog.Logger
	observer CallObserver
	seen     sync.Map // unknown fields that were logged: message and number
}

// NewInterceptors returns interceptors that log to log and report to observer,
// which may be nil.
func NewInterceptors(log klog.Logger, observer CallObserver) *Interceptors {
	return &Interceptors{log: log, observer: observer}
}

// Unary is a grpc.UnaryServerInterceptor.
func (i *Interceptors) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	ctx, done := i.begin(ctx, info.FullMethod)
	defer func() { err = done(recover(), err) }()
	if m, ok := req.(proto.Message); ok {
		i.unknown(klog.FromContext(ctx), m)
	}
	return next(ctx, req)
}

// Stream is a grpc.StreamServerInterceptor.
func (i *Interceptors) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx, done := i.begin(ss.Context(), info.FullMethod)
	defer func() { err = done(recover(), err) }()
	return next(srv, &stream{ServerStream: ss, ctx: ctx})
}

// stream hands the handler a context that carries the logger.
type stream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc.ServerStream hands out its context by a method
}

func (s *stream) Context() context.Context { return s.ctx }

// begin returns the context of a call and what ends it: done turns a panic or an
// error into a status, and reports it.
func (i *Interceptors) begin(ctx context.Context, full string) (context.Context, func(any, error) error) {
	start := time.Now()
	method := path.Base(full)
	log := klog.LoggerWithValues(i.log, "method", method)
	ctx = klog.NewContext(ctx, log)
	log.V(4).Info("Call began")
	return ctx, func(panicked any, err error) error {
		if panicked != nil {
			log.Error(nil, "Call panicked", "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s panicked: %v", method, panicked)
		}
		err = toStatus(ctx, full, err)
		took := time.Since(start)
		if err != nil {
			log.V(2).Info("Call failed", "err", err, "took", took)
		} else {
			log.V(4).Info("Call ended", "took", took)
		}
		if i.observer != nil {
			i.observer.CallDone(method, status.Code(err).String(), took)
		}
		return err
	}
}

// unknown counts the fields of a request that this version of the CRI does not
// have, and logs each the first time.
func (i *Interceptors) unknown(log klog.Logger, m proto.Message) {
	for _, field := range translate.UnknownFields(m) {
		name := string(m.ProtoReflect().Descriptor().Name())
		if i.observer != nil {
			i.observer.UnknownField(name)
		}
		if _, again := i.seen.LoadOrStore(name+" "+field, true); !again {
			log.Info("Ignored a field of a newer CRI", "message", name, "field", field)
		}
	}
}
