// Command gantry readies pods for launch: the command line that people drive,
// and, as gantry serve, the daemon that the kubelet drives. Both call the same
// pipeline on the same state on disk. Each subcommand has a file of its own:
// flags, call, print.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cmd/gantry/podargs"
	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/failpoint"
	"github.com/gantry-cri/gantry/stage0/manifest"
)

// The exit codes of every command but those that exit with an app's code.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	manifest.RegisterIsolators()
	if err := failpoint.Arm(); err != nil {
		fmt.Fprintf(os.Stderr, "gantry: %v\n", err)
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main as a value: it executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var exited appExit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exited):
		return int(exited)
	}
	complain(stderr, cmd, err)
	if cmd == root || errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailure
}

// complain prints an error as one line, and a hint where there is one.
func complain(stderr io.Writer, cmd *cobra.Command, err error) {
	path := strings.ReplaceAll(strings.TrimPrefix(cmd.CommandPath(), "gantry"), " ", ": ")
	text := strings.TrimPrefix(err.Error(), cmd.Name()+": ")
	fmt.Fprintf(stderr, "gantry%s: %s\n", path, text)
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
}

func hintOf(err error) string {
	var hinted interface{ Hint() string }
	switch {
	case errors.As(err, &hinted):
		return hinted.Hint()
	case errors.Is(err, errdefs.ErrNoSpace):
		return "gantry gc frees what nothing uses any more"
	}
	return ""
}

// usageError is a command line that can never work; it ends with exit code 2.
type usageError struct{ error }

// Unwrap returns what is wrong with the command line.
func (e usageError) Unwrap() error { return e.error }

// hintError adds to an error what to do next.
type hintError struct {
	error
	hint string
}

// Unwrap returns the error.
func (e hintError) Unwrap() error { return e.error }

// Hint says what to do next.
func (e hintError) Hint() string { return e.hint }

// appExit ends the command with the exit code of an app, and no message.
type appExit int

// Error is for those who do not know appExit.
func (e appExit) Error() string { return fmt.Sprintf("the app exited with code %d", int(e)) }

// newRoot assembles the command tree.
func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:           "gantry",
		Short:         "Gantry readies pods for launch",
		Long:          "Gantry fetches images, prepares pods on disk and runs them: for people by this\ncommand line, for a kubelet by gantry serve.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("no command: gantry --help lists them")}
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{podargs.FlagError(err)}
	})
	o.register(root.PersistentFlags())
	registerInsecure(root.PersistentFlags())
	root.AddCommand(
		newPrepare(o), newRunPrepared(o), newRun(o), newFetch(o), newImage(o), newList(o), newStatus(o),
		newCatManifest(o), newStop(o), newRm(o), newGC(o), newFsck(o), newSystem(o), newDoctor(o), newRegistry(o), newTranslate(), newServe(o), newVersion(), newFailpoints(),
	)
	return root
}

// exactly is cobra.ExactArgs as a usage error that says what is missing.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("want %s, got %d arguments", what, len(args))}
		}
		return nil
	}
}

// atLeastOne is cobra.MinimumNArgs(1) as a usage error that says what is missing.
func atLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{fmt.Errorf("want at least one %s", what)}
		}
		return nil
	}
}

// needRoot does what changes state, and refuses it to those who cannot.
func needRoot(do func() error) error {
	if os.Geteuid() != 0 {
		return hintError{errors.New("cannot run as unprivileged user"), "run it as root, by sudo for example"}
	}
	return do()
}
