package podargs

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/appc/spec/schema/types"
	"github.com/spf13/pflag"

	"github.com/gantry-cri/gantry/stage0/errdefs"
	"github.com/gantry-cri/gantry/stage0/imageref"
)

// parse reads a command line as cobra hands it over. Image names stand for
// docker:// images here, as the grammar does not care.
func parse(words ...string) (*Request, error) {
	flags := pflag.NewFlagSet("prepare", pflag.ContinueOnError)
	flags.String("dir", "", "a global flag")
	p := New(flags)
	if err := flags.Parse(words); err != nil {
		return nil, FlagError(err)
	}
	r, err := p.Parse(flags.Args())
	return r, FlagError(err)
}

// docker puts docker: before words that look like images.
func docker(line string) []string {
	words := strings.Split(line, " ")
	for i, w := range words {
		if w == "foo" || w == "bar" || w == "baz" {
			words[i] = "docker:" + w
		}
	}
	return words
}

// Acceptance cases 1, 2, 9 and 10 of spec/rkt-prepare.md.
func TestGrammar(t *testing.T) {
	for _, c := range []struct {
		name  string
		words []string
		want  []string // "app: args"
	}{
		{"args of one image", docker("foo bar -- --help --- baz -- --verbose"), []string{"foo:", "bar: --help", "baz: --verbose"}},
		{"dashes that end nothing", docker("foo --- bar --- baz ---"), []string{"foo:", "bar:", "baz:"}},
		{"empty words between images", docker("foo  bar   baz"), []string{"foo:", "bar:", "baz:"}},
		{"empty argument is kept", []string{"docker:foo", "--", "a", "", "b"}, []string{"foo: a  b"}},
		{"dashes first", docker("-- foo"), []string{"foo:"}},
		{"second dashes are an argument", docker("foo -- a -- b"), []string{"foo: a -- b"}},
		{"flag then dashes", docker("foo --exec=/bin/sh -- -c x"), []string{"foo: -c x"}},
		{"flag that takes dashes", docker("foo --exec -- bar"), []string{"foo:", "bar:"}},
		{"bool flag then dashes", docker("foo --quiet -- a"), []string{"foo: a"}},
		{"flags in between", docker("foo --user=1 bar --name=b --dir /x baz"), []string{"foo:", "b:", "baz:"}},
		{"one image twice", docker("foo --name=a --exec=/x -- 1 --- foo --name=b --exec=/y -- 2"), []string{"a: 1", "b: 2"}},
		{"flags after arguments", docker("foo -- a --- bar --name=b --user 1"), []string{"foo: a", "b:"}},
		{"flag and value at the end", docker("foo -- a --- --set-env A=b"), []string{"foo: a"}},
		{"an argument like an image", docker("foo -- bar"), []string{"foo: docker:bar"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parse(c.words...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range r.Apps {
				got = append(got, strings.TrimSuffix(string(a.Name)+": "+strings.Join(a.args, " "), " "))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Acceptance cases 3, 7, 8, 11, 58, 60 and 63: refused before anything is fetched.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, line, want string
	}{
		{"no images", "--quiet", "no images"},
		{"dashes before an image", "--quiet=true -- --quiet -- x", "an image is required before any app arguments"},
		{"two sets of arguments", "foo -- a --- -- b", "only one set of app arguments"},
		{"app flag before an image", "--exec=/x foo", `--exec "/x": must follow an image`},
		{"caps-remove before an image", "--caps-remove=CAP_CHOWN foo", `--caps-remove "CAP_CHOWN": must follow an image`},
		{"exec twice", "foo --exec=/x --exec=/y", `--exec "/y": specified multiple times for the same image`},
		{"one name twice", "foo foo", `multiple apps with name "foo"`},
		{"one name twice by --name", "foo bar --name=foo", `multiple apps with name "foo"`},
		{"bad name", "foo --name=A_b", `--name "A_b": an app name is`},
		{"pull policy", "--pull-policy=bogus foo", `--pull-policy "bogus": the pull policy is one of never, new, update`},
		{"port name", "--port=f$o:123 foo", `"f$o" is not a port name`},
		{"port ip", "--port=foo:NOIP:80 foo", `"NOIP" is not a valid IP`},
		{"port zero", "--port=foo:0 foo", "want 1 to 65535"},
		{"port too large", "--port=foo:65536 foo", "want 1 to 65535"},
		{"port without name", "--port=80 foo", "NAME:[HOSTIP:]HOSTPORT"},
		{"port IPv6 without brackets", "--port=foo:::1:80 foo", "stands in brackets"},
		{"port twice", "--port=a:80 --port=a:127.0.0.1:80 foo", "port a is mapped to 127.0.0.1:80 twice"},
		{"environment", "foo --environment=x", "must be specified as NAME=VALUE"},
		{"environment name", "foo --environment=1x=y", `"1x" is not a name`},
		{"set-env", "--set-env=x foo", "must be specified as NAME=VALUE"},
		{"set-env twice", "--set-env=x=1 --set-env=x=2 foo", `key "x" already set`},
		{"set-env-file", "--set-env-file=/nonexistent foo", "no such file"},
		{"volume twice", "--volume=v,kind=empty --volume=v,kind=empty foo", `duplicate volume name "v"`},
		{"volume kind", "--volume=v,kind=x foo", `should be one of "empty", "host"`},
		{"volume without source", "--volume=v,kind=host foo", "source for host volume cannot be empty"},
		{"volume with relative source", "--volume=v,kind=host,source=x foo", "must be absolute"},
		{"volume mode", "--volume=v,kind=empty,mode=zzz foo", `mode "zzz" is not an octal file mode`},
		{"volume uid", "--volume=v,kind=empty,uid=-5 foo", "-5 is not a user or group id"},
		{"mount without volume", "foo --mount=volume=v,target=/x", `dangling mount point "/x": volume "v" not found`},
		{"mount with relative target", "--volume=v,kind=empty foo --mount=volume=v,target=x", "must be absolute"},
		{"mount without target", "--volume=v,kind=empty foo --mount=volume=v", "volume=NAME,target=PATH"},
		{"mount with more", "--volume=v,kind=empty foo --mount=volume=v,target=/x,ro=1", `unknown mount parameter "ro"`},
		{"capability", "foo --caps-retain=CAP_BOGUS", `"CAP_BOGUS" is not a capability`},
		{"capability empty", "foo --caps-retain=", `"" is not a capability`},
		{"capabilities both", "foo --caps-retain=CAP_CHOWN --caps-remove=CAP_KILL", "cannot use both --caps-retain and --caps-remove"},
		{"working directory", "foo --working-dir=x", "must be absolute"},
		{"group ids", "foo --supplementary-gids=1,x", `"x" is not a group id`},
		{"read-only", "foo --readonly-rootfs=maybe", "must be set with a boolean"},
		{"value missing", "foo --name", "flag needs an argument: --name"},
		{"lone dash", "-", "images of kind appc name"},
		{"no overlay", "--no-overlay=perhaps foo", "must be set with a boolean"},
		{"unknown flag", "foo --no-underlay", "unknown flag: --no-underlay"},
		{"bad reference", "docker://example.com/UPPER", "UPPER"},
		{"file", "./x.tar", "invalid image string"},
		{"file twice", "./x.aci ./x.aci", "multiple apps with name \"aci:./x.aci\""},
		{"signature", "./x.aci --signature=x.asc", "signatures are not verified yet"},
		{"URL", "https://example.com/x.aci", "images of kind URL are not supported yet"},
		{"appc name", "example.com/app:v1", "images of kind appc name are not supported yet"},
		{"platform", "--platform=arm64 foo", `--platform "arm64": a platform is OS/ARCH or OS/ARCH/VARIANT`},
		{"platform empty", "foo --platform=", "a platform is OS/ARCH"},
		{"platform twice", "--platform=linux/arm64 --platform=linux/arm64 foo", "specified multiple times"},
		{"platform of an image twice", "foo --platform=linux/arm64 --platform=linux/arm64", "specified multiple times"},
		{"platform of an ACI", "foo ./x.aci --platform=linux/arm64", "--platform: aci:./x.aci is an ACI, which is for one platform"},
		{"platform of all, an ACI among them", "--platform=linux/arm64 foo ./x.aci", "--platform: aci:./x.aci is an ACI"},
		{"archive without a path", "oci-archive:", "say oci-archive:PATH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(docker(c.line)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestRefusedClasses(t *testing.T) {
	if _, err := parse("docker:foo", "docker:foo"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("two names: %v is not ErrInvalid", err)
	}
	_, err := parse("busybox")
	var hinted interface{ Hint() string }
	if !errors.Is(err, errdefs.ErrUnsupported) || !errors.As(err, &hinted) || hinted.Hint() == "" {
		t.Errorf("appc name: %v is not ErrUnsupported with a hint", err)
	}
}

func TestPlatform(t *testing.T) {
	for _, c := range []struct{ name, line, want string }{
		{"none", "foo bar", "- -"},
		{"of all", "--platform=linux/arm64 foo bar", "arm64 arm64"},
		{"of one", "foo bar --platform linux/s390x", "- s390x"},
		{"of all but one", "--platform=linux/arm64 foo --platform=linux/amd64 bar", "amd64 arm64"},
		{"of one, beside an ACI", "foo --platform=linux/arm64 ./x.aci", "arm64 -"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parse(docker(c.line)...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range r.Apps {
				if a.Platform == nil {
					got = append(got, "-")
				} else {
					got = append(got, a.Platform.Architecture)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestAppName(t *testing.T) {
	for _, c := range []struct{ name, image, want string }{
		{"acceptance case 8", "docker://Foo/Bar_baz", "bar-baz"},
		{"tag", "docker://host:5000/a/web:1.0", "web"},
		{"digest", "docker:host:5000/a/web@sha256:0123", "web"},
		{"host and port alone", "docker://host:5000/web", "web"},
		{"id", "sha256:0123abc", "sha256-0123abc"},
		{"nothing left", "docker://___", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := appName(c.image)
			if string(got) != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// Acceptance case 14.
func TestParseImage(t *testing.T) {
	for _, c := range []struct{ name, image, want string }{
		{"short", "docker:busybox", "docker.io/library/busybox:latest"},
		{"slashes", "docker://busybox", "docker.io/library/busybox:latest"},
		{"tag", "docker://busybox:latest", "docker.io/library/busybox:latest"},
		{"port", "docker:host:4000/busybox:1.0", "host:4000/busybox:1.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseImage(c.image)
			if err != nil || got.String() != c.want || got.Ref.IsZero() {
				t.Errorf("got %+v, %v; want %q", got, err, c.want)
			}
		})
	}
	for _, id := range []string{"sha512-0123abcd", "sha512-01", "sha256:012"} {
		if got, err := ParseImage(id); err != nil || got.ID != id {
			t.Errorf("id: got %+v, %v", got, err)
		}
	}
	for _, no := range []string{"sha512-0", "sha512-xy", "sha512-0123ABCD", "sha256:01", "sha256:01x", "a://sha512-0123abcd"} {
		if got, err := ParseImage(no); err == nil && got.ID != "" {
			t.Errorf("%s is taken for an id", no)
		}
	}
	for image, kind := range map[string]string{
		"https://example.com/a": "URL", "s3+x.y-1://a": "s3+x.y-1", "a": "appc name", "1a://b": "appc name", "A://b": "appc name",
		"://b": "appc name", "a b://c": "appc name", "cimd:x": "cimd",
	} {
		if _, err := ParseImage(image); err == nil || !strings.Contains(err.Error(), "images of kind "+kind+" are") {
			t.Errorf("%s: got %v, want kind %s", image, err, kind)
		}
	}
	got, err := ParseImage("oci-archive:/a/My App.tar:example.com/x:1")
	if err != nil || got.At != (imageref.Location{Transport: imageref.OCIArchive, Path: "/a/My App.tar", Name: "example.com/x:1"}) {
		t.Errorf("archive: got %+v, %v", got, err)
	}
}

func TestEnvFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	long := strings.Repeat("x", 100_000)
	good := write("good", "# comment\n; too\n\nA=1\r\nB= two words \nLONG="+long+"\nC=last")
	env, err := readEnvFiles([]string{good, write("other", "D=4\n")})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"A": "1", "B": " two words ", "LONG": long, "C": "last", "D": "4"} {
		if got, _ := env.Get(name); got != want {
			t.Errorf("%s=%.20q, want %.20q", name, got, want)
		}
	}
	for _, c := range []struct {
		name  string
		paths []string
		want  string
	}{
		{"no equals sign", []string{write("bad", "A=1\nB\n")}, "bad:2: must be specified"},
		{"only blanks", []string{write("blank", "  \n")}, "blank:1: must be specified"},
		{"value that is no text", []string{write("bytes", "A=1\nB=\xff\n")}, "bytes:2: the value of B is not text"},
		{"key in two files", []string{good, write("again", "A=2")}, `again:1: key "A" already set`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := readEnvFiles(c.paths); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("docker:a --exec /x -- b --- docker:c --port=a:[::1]:80 -")
	f.Add("--volume=v,kind=empty,mode=7 --mount volume=v,target=/x docker:a -- -- ---")
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "set-env-file") {
			t.Skip("reads files")
		}
		r, err := parse(strings.Split(line, " ")...)
		if err == nil && len(r.Apps) == 0 {
			t.Error("a request without apps")
		}
	})
}

// FuzzEnvFile holds that files of --set-env-file are refused as invalid, or that a
// manifest keeps each of their variables as the file has it, none twice.
func FuzzEnvFile(f *testing.F) {
	for _, s := range []string{"A=1\nB=2\n", "A=1\nA=2", "# A\n; B\n\n\r\nC==x \r\n", "A", "=", "a.b-c=x", "A=\x00", "A=\xff", "A=\u2028\ufeff", "\ufeffA=1", " A=1", "A=1\rB=2", "export A=1"} {
		f.Add([]byte(s), []byte("Z=1"))
		f.Add([]byte("Z=1"), []byte(s))
	}
	dir := f.TempDir()
	paths := []string{filepath.Join(dir, "1"), filepath.Join(dir, "2")}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		if err := errors.Join(os.WriteFile(paths[0], one, 0o600), os.WriteFile(paths[1], two, 0o600)); err != nil {
			t.Fatal(err)
		}
		env, err := readEnvFiles(paths)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is of no class", err)
			}
			return
		}
		raw, err := json.Marshal(env)
		var kept types.Environment
		if err := errors.Join(err, json.Unmarshal(raw, &kept)); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for i, v := range env {
			line := v.Name + "=" + v.Value
			if seen[v.Name] || kept[i] != v || strings.ContainsAny(line, "\x00\n") || !bytes.Contains(slices.Concat(one, two), []byte(line)) {
				t.Errorf("%q is kept as %q", line, kept[i])
			}
			seen[v.Name] = true
		}
	})
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
