package podargs

import (
	"slices"
	"strconv"
	"strings"

	"github.com/appc/spec/schema/types"
	capabilities "github.com/containerd/containerd/v2/pkg/cap"
	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0"
	"github.com/gantry-cri/gantry/stage0/fetch"
)

// New registers the flags of prepare and run with flags and returns the parser
// that they fill. flags must be the complete set of the command, global flags
// included, since flags may stand between the images.
func New(flags *pflag.FlagSet) *Parser {
	p := &Parser{flags: flags, request: Request{PullPolicy: stage0.PullNew}}
	flags.SetInterspersed(false)
	p.podFlags(flags)
	p.appFlags(flags)
	return p
}

func (p *Parser) podFlags(flags *pflag.FlagSet) {
	r := &p.request
	flags.BoolVar(&r.Quiet, "quiet", false, "no progress and notes on stderr")
	p.noOverlay(flags)
	flags.BoolVar(&r.PrivateUsers, "private-users", false, "run the pod in a user namespace, with ids of the node that no other pod has")
	flags.BoolVar(&r.inheritEnv, "inherit-env", false, "give the apps the caller's variables that nothing else sets")
	flags.Func("pull-policy", "when to ask the registry: `POLICY` is never, new or update (default new)", func(s string) error {
		policy, err := stage0.ParsePullPolicy(s)
		if err != nil {
			return invalid("the pull policy is one of never, new, update")
		}
		r.PullPolicy = policy
		return nil
	})
	flags.Func("set-env", "`NAME=VALUE` for all apps", func(s string) error {
		v, err := parseEnv(s)
		if err != nil {
			return err
		}
		if _, ok := r.setEnv.Get(v.Name); ok {
			return invalid("key %q already set", v.Name)
		}
		r.setEnv = append(r.setEnv, v)
		return nil
	})
	flags.Func("set-env-file", "`FILE` of NAME=VALUE lines for all apps; # and ; begin comments", func(s string) error {
		p.envFile = append(p.envFile, s)
		return nil
	})
	flags.Func("volume", "`NAME,kind=host,source=PATH[,readOnly=BOOL][,recursive=BOOL]` or NAME,kind=empty[,mode=MODE][,uid=UID][,gid=GID]", func(s string) error {
		v, err := parseVolume(s)
		if err != nil {
			return err
		}
		r.Volumes = append(r.Volumes, v)
		return nil
	})
	flags.Func("mount", "`volume=NAME,target=PATH`: before the first image for all apps, after an image for that app", func(s string) error {
		m, err := parseMount(s)
		if err != nil {
			return err
		}
		if app := p.last(); app != nil {
			app.mounts = append(app.mounts, m)
		} else {
			r.mounts = append(r.mounts, m)
		}
		return nil
	})
	flags.Func("platform", "`OS/ARCH[/VARIANT]` of an image that is for several (default this machine's): before the first image for all, after an image for that image", p.setPlatform)
	flags.Func("port", "`NAME:[HOSTIP:]HOSTPORT` exposes a port of an app by its name, e.g. 80-tcp:8080", func(s string) error {
		port, err := parsePort(s)
		if err != nil {
			return err
		}
		r.Ports = append(r.Ports, port)
		return nil
	})
}

func (p *Parser) setPlatform(s string) error {
	at := &p.request.platform
	if app := p.last(); app != nil {
		at = &app.Platform
	}
	if *at != nil {
		return invalid("specified multiple times")
	}
	platform, err := fetch.ParsePlatform(s)
	if err != nil {
		return invalid("a platform is OS/ARCH or OS/ARCH/VARIANT, as linux/arm64 or linux/arm/v7")
	}
	*at = &platform
	return nil
}

// noOverlay is a switch that takes a value all the same: --no-overlay=false.
func (p *Parser) noOverlay(flags *pflag.FlagSet) {
	flags.BoolFunc("no-overlay", "copy the images instead of stacking them by overlay", func(s string) error {
		copied, err := strconv.ParseBool(s)
		if err != nil {
			return invalid("must be set with a boolean")
		}
		p.request.Rootfs = stage0.RootfsAuto
		if copied {
			p.request.Rootfs = stage0.RootfsCopy
		}
		return nil
	})
}

func (p *Parser) appFlags(flags *pflag.FlagSet) {
	of := func(name, usage string, set func(*App, string) error) {
		flags.Func(name, usage+" [app]", func(s string) error {
			app := p.last()
			if app == nil {
				return invalid("must follow an image")
			}
			return set(app, s)
		})
	}
	of("exec", "`PATH` of the program to run instead of the image's", func(a *App, s string) error {
		if a.exec != nil {
			return invalid("specified multiple times for the same image")
		}
		return nonEmpty(s, func() { a.exec = &s })
	})
	of("name", "`NAME` of the app; by default made of the image's name", func(a *App, s string) error {
		name, err := types.NewACName(s)
		if err != nil {
			return invalid("an app name is lower-case letters and digits, joined by single dashes")
		}
		a.Name = *name
		return nil
	})
	of("signature", "`FILE` with the image's signature: not supported yet", func(*App, string) error {
		return unsupportedError{text: "signatures are not verified yet"}
	})
	of("user", "`USER`: uid, name, or a path whose owner it is", func(a *App, s string) error {
		return nonEmpty(s, func() { a.user = s })
	})
	of("group", "`GROUP`: gid, name, or a path whose group it is", func(a *App, s string) error {
		return nonEmpty(s, func() { a.group = s })
	})
	of("supplementary-gids", "`GID,...` instead of the image's", setGIDs)
	of("working-dir", "`PATH` of the working directory", func(a *App, s string) error {
		if !strings.HasPrefix(s, "/") {
			return invalid("the working directory must be absolute")
		}
		a.workingDir = s
		return nil
	})
	of("readonly-rootfs", "`BOOL`: mount the root filesystem read-only", func(a *App, s string) error {
		v, err := strconv.ParseBool(s)
		if err != nil {
			return invalid("must be set with a boolean")
		}
		a.readOnly = v
		return nil
	})
	of("environment", "`NAME=VALUE` for this app; beats --set-env", func(a *App, s string) error {
		v, err := parseEnv(s)
		if err != nil {
			return err
		}
		a.env.Set(v.Name, v.Value)
		return nil
	})
	of("user-annotation", "`NAME=VALUE` in the app's user annotations, instead of the image's", func(a *App, s string) error {
		return setPair((*map[string]string)(&a.annotations), s)
	})
	of("user-label", "`NAME=VALUE` in the app's user labels, instead of the image's", func(a *App, s string) error {
		return setPair((*map[string]string)(&a.labels), s)
	})
	of("caps-retain", "`CAP,...` to retain; all others are removed", func(a *App, s string) error {
		return addCaps(&a.retain, s)
	})
	of("caps-remove", "`CAP,...` to remove from the default set", func(a *App, s string) error {
		return addCaps(&a.drop, s)
	})
}

func nonEmpty(s string, set func()) error {
	if s == "" {
		return invalid("must not be empty")
	}
	set()
	return nil
}

func setGIDs(a *App, s string) error {
	for word := range strings.SplitSeq(s, ",") {
		gid, err := strconv.ParseUint(word, 10, 31)
		if err != nil {
			return invalid("%q is not a group id", word)
		}
		a.gids = append(a.gids, int(gid))
	}
	return nil
}

func setPair(pairs *map[string]string, s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return invalid("must be specified as NAME=VALUE")
	}
	if *pairs == nil {
		*pairs = map[string]string{}
	}
	(*pairs)[name] = value
	return nil
}

// addCaps adds the capabilities of a comma list, in the spelling of
// capabilities(7), each once.
func addCaps(caps *[]string, s string) error {
	known := capabilities.Known()
	for word := range strings.SplitSeq(s, ",") {
		name := strings.ToUpper(word)
		if !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if !slices.Contains(known, name) {
			return invalid("%q is not a capability", word)
		}
		if !slices.Contains(*caps, name) {
			*caps = append(*caps, name)
		}
	}
	return nil
}
