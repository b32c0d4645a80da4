package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"sync"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

const (
	helperPrefix = "docker-credential-"
	// helperTime is what a helper may take: some ask a cloud's server.
	helperTime = 30 * time.Second
	// helperOutput is the most that a helper may say, bytes.
	helperOutput = 1 << 20
	// tokenUser is the user under which a helper hands out an identity token.
	tokenUser = "<token>"
)

var helperName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`) })

// helper is a docker-credential-NAME program.
type helper struct {
	name   string
	reason string // why it is asked, for messages
}

// get asks the program for a key. What it does not know is the zero Credential.
// What the program prints does not get into an error: it may be the secret.
func (h helper) get(ctx context.Context, key string) (Credential, error) {
	if !helperName().MatchString(h.name) {
		return Credential{}, fmt.Errorf("%q is no name of a helper: %w", h.name, errdefs.ErrInvalid)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTime, fmt.Errorf("no answer within %s: %w", helperTime, errdefs.ErrUnavailable))
	defer cancel()
	p := &program{cmd: exec.CommandContext(ctx, helperPrefix+h.name)}
	found, err := client.Get(func(args ...string) client.Program {
		p.cmd.Args = append(p.cmd.Args, args...)
		return p
	}, key)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return Credential{}, nil
	case ctx.Err() != nil:
		return Credential{}, fmt.Errorf("%s%s: %w", helperPrefix, h.name, context.Cause(ctx))
	case p.err != nil:
		return Credential{}, fmt.Errorf("%s%s: %w: %w", helperPrefix, h.name, p.err, errdefs.ErrUnavailable)
	case err != nil:
		return Credential{}, fmt.Errorf("%s%s: its answer is not of the protocol: %w", helperPrefix, h.name, errdefs.ErrInvalid)
	}
	switch {
	case found.Secret == "": // as with an entry of the file: a name alone says nothing
		return Credential{}, nil
	case found.Username == tokenUser:
		return Credential{IdentityToken: found.Secret}, nil
	}
	return Credential{User: found.Username, Password: found.Secret}, nil
}

// program runs a helper for docker's client of the protocol. It is one of its
// own because docker's has no time limit and hands stderr through.
type program struct {
	cmd *exec.Cmd
	err error // why it failed, without a word of its own
}

// Input is part of client.Program.
func (p *program) Input(in io.Reader) { p.cmd.Stdin = in }

// Output is part of client.Program.
func (p *program) Output() ([]byte, error) {
	out := &capped{left: helperOutput}
	p.cmd.Stdout = out
	p.cmd.WaitDelay = time.Second // a child of the helper may keep its stdout
	p.err = p.cmd.Run()
	return out.Bytes(), p.err
}

type capped struct {
	bytes.Buffer
	left int
}

// Write is part of io.Writer.
func (c *capped) Write(b []byte) (int, error) {
	if c.left -= len(b); c.left < 0 {
		return 0, errors.New("it says too much")
	}
	return c.Buffer.Write(b)
}
