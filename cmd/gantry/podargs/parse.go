package podargs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// Parser reads one command line. Make it with [New] before the flags are read.
type Parser struct {
	flags   *pflag.FlagSet
	request Request
	envFile []string
}

// Parse reads what follows the command's own flags: words is what the flag set
// left over when it stopped at the first image. Errors are of the user's making
// and wrap errdefs.ErrInvalid or errdefs.ErrUnsupported.
func (p *Parser) Parse(words []string) (*Request, error) {
	inArgs := false
	for i := 0; i < len(words); {
		word := words[i]
		switch {
		case inArgs && word == "---":
			inArgs = false
		case inArgs:
			app := p.last()
			app.args = append(app.args, word)
		case word == "---" || word == "":
		case word == "--":
			if err := p.beginArgs(); err != nil {
				return nil, err
			}
			inArgs = true
		case strings.HasPrefix(word, "-") && word != "-":
			eaten, err := p.eatFlag(words[i:])
			if err != nil {
				return nil, err
			}
			i += eaten
			continue
		default:
			p.request.Apps = append(p.request.Apps, App{Image: word})
		}
		i++
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return &p.request, nil
}

// eatFlag lets the flag set read the flag that words begin with, and says how
// many words it was. The flag set gets no word more: it would swallow a "--", and
// does not tell reliably that it did.
func (p *Parser) eatFlag(words []string) (int, error) {
	eaten := min(p.flagLength(words[0]), len(words))
	if err := p.flags.Parse(words[:eaten]); err != nil {
		return 0, err
	}
	if help := p.flags.Lookup("help"); help != nil && help.Changed {
		return 0, pflag.ErrHelp
	}
	return eaten, nil
}

// flagLength is 2 for a flag whose value is the next word, else 1.
func (p *Parser) flagLength(word string) int {
	name, _, valued := strings.Cut(strings.TrimPrefix(word, "--"), "=")
	if flag := p.flags.Lookup(name); flag == nil || valued || flag.NoOptDefVal != "" {
		return 1
	}
	return 2
}

func (p *Parser) beginArgs() error {
	app := p.last()
	if app == nil {
		return invalid("an image is required before any app arguments")
	}
	if app.hasArgs {
		return invalid("image %q: only one set of app arguments allowed per image", app.Image)
	}
	app.hasArgs = true
	return nil
}

func (p *Parser) last() *App {
	if len(p.request.Apps) == 0 {
		return nil
	}
	return &p.request.Apps[len(p.request.Apps)-1]
}

// check judges what only the whole command line can tell.
func (p *Parser) check() error {
	r := &p.request
	if len(r.Apps) == 0 {
		return invalid("no images")
	}
	seen := map[string]bool{}
	for i := range r.Apps {
		app := &r.Apps[i]
		if err := app.resolve(); err != nil {
			return err
		}
		if app.Platform == nil {
			app.Platform = r.platform
		}
		if err := app.From.CheckPlatform(app.Platform); err != nil {
			return err
		}
		name := app.Name.String()
		if name == "" { // it will be that of the ACI, which is the same for the same file
			name = app.From.String()
		}
		if seen[name] {
			return invalid("multiple apps with name %q: tell them apart with --name", name)
		}
		seen[name] = true
	}
	if err := r.checkVolumes(); err != nil {
		return err
	}
	if err := checkPorts(r.Ports); err != nil {
		return err
	}
	var err error
	r.fileEnv, err = readEnvFiles(p.envFile)
	return err
}

// resolve finds the image's kind and the app's name, but for that of an ACI: it is
// made of the name that its manifest says.
func (a *App) resolve() error {
	if a.retain != nil && a.drop != nil {
		return invalid("image %q: cannot use both --caps-retain and --caps-remove on the same image", a.Image)
	}
	var err error
	if a.From, err = ParseImage(a.Image); err != nil {
		return err
	}
	if a.Name != "" || a.From.At.Transport == imageref.ACI {
		return nil
	}
	name, err := appName(a.Image)
	if err != nil {
		return invalid("image %q: no app name can be made of it (%v): give one with --name", a.Image, err)
	}
	a.Name = name
	return nil
}

// FlagError turns an error of the flag set into one that says what is wrong in
// the words of this package. Other errors it returns as they are.
func FlagError(err error) error {
	var value *pflag.InvalidValueError
	if !errors.As(err, &value) {
		return err
	}
	if cause := errors.Unwrap(value); cause != nil && errors.Is(cause, errdefs.ErrInvalid) {
		return fmt.Errorf("--%s %q: %w", value.GetFlag().Name, value.GetValue(), cause)
	}
	return err
}

// IsFlagError says whether err is of a flag set that found the words unreadable.
func IsFlagError(err error) bool {
	return errors.As(err, new(*pflag.InvalidValueError)) || errors.As(err, new(*pflag.NotExistError)) ||
		errors.As(err, new(*pflag.ValueRequiredError)) || errors.As(err, new(*pflag.InvalidSyntaxError))
}

// invalidError is a finding about the command line; its text is complete as it
// stands, so the class does not show in it.
type invalidError struct{ text string }

// Error returns the finding.
func (e invalidError) Error() string { return e.text }

// Is puts the finding in the class errdefs.ErrInvalid.
func (e invalidError) Is(target error) bool { return target == errdefs.ErrInvalid }

func invalid(format string, args ...any) error {
	return invalidError{fmt.Sprintf(format, args...)}
}
