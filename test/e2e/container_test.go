package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// secure changes the security context of a container.
func secure(f func(*runtimeapi.LinuxContainerSecurityContext)) change {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
}

// status greps /proc/self/status.
func statusOf(field string) string { return "sed -n 's/^" + field + ":[ \\t]*//p' /proc/self/status" }

// TestContainers looks at what a container is given, in one pod.
func TestContainers(t *testing.T) {
	n := startNode(t, harness.GantryOptions{})
	c := sandboxConfig(t, "containers")
	c.Linux.SecurityContext.Privileged = true // one of its containers is
	b := n.run(t, c)
	for name, test := range map[string]func(*testing.T, *box){
		"privileged":        testPrivileged,
		"capabilities":      testCapabilities,
		"users":             testUsers,
		"unknown user":      testUnknownUser,
		"read-only root":    testReadOnlyRoot,
		"masked paths":      testMaskedPaths,
		"seccomp":           testSeccomp,
		"no new privileges": testNoNewPrivileges,
		"mounts":            testMounts,
		"propagation":       testPropagation,
		"devices":           testDevices,
		"resources":         testResources,
		"environment":       testEnvironment,
		"echo":              testEcho,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

func testPrivileged(t *testing.T, b *box) {
	own := must(os.ReadFile("/proc/self/status"))(t)
	_, rest, _ := strings.Cut(string(own), "CapBnd:\t")
	want, _, _ := strings.Cut(rest, "\n")
	got := b.output(t, "privileged", statusOf("CapEff")+"; "+statusOf("Seccomp")+"; mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; ls /dev | grep -c loop-control", secure(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Privileged = true
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		s.Seccomp = &runtimeapi.SecurityProfile{}
	}))
	if got != want+"\n0\nmounted\n1\n" {
		t.Errorf("got %q, want the capabilities %s, no seccomp, a mount and the node's devices", got, want)
	}
}

func testCapabilities(t *testing.T, b *box) {
	tests := []struct {
		name      string
		add, drop []string
		want      string
	}{
		{"default", nil, nil, "00000000a80425fb"},
		{"drop all", nil, []string{"ALL"}, "0000000000000000"},
		{"add to none", []string{"NET_ADMIN"}, []string{"ALL"}, "0000000000001000"},
		{"drop one", nil, []string{"NET_RAW"}, "00000000a80405fb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := b.output(t, "cap-"+strings.ReplaceAll(tt.name, " ", "-"), statusOf("CapEff")+"; "+statusOf("CapBnd"), secure(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Capabilities = &runtimeapi.Capability{AddCapabilities: tt.add, DropCapabilities: tt.drop}
			}))
			if got != tt.want+"\n"+tt.want+"\n" {
				t.Errorf("CapEff and CapBnd are %q, want %s", got, tt.want)
			}
		})
	}
}

func testUsers(t *testing.T, b *box) {
	tests := []struct {
		name string
		set  func(*runtimeapi.LinuxContainerSecurityContext)
		want string
	}{
		{"number", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1001}
		}, "1001 0 0"},
		{"name-of-image", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "app" }, "1000 1000 1000 50000"},
		{"group", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1001}, &runtimeapi.Int64Value{Value: 1002}
		}, "1001 1002 1002"},
		{"supplemental", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, []int64{1234}
		}, "1000 1000 1000 1234 50000"},
		{"strict", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, []int64{1234}
			s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		}, "1000 1000 1000 1234"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := b.start(t, "user-"+tt.name, "exec sleep 1000", secure(tt.set))
			if got := b.exec(t, id, `echo $(id -u) $(id -g) $(id -G | tr ' ' '\n' | sort -n)`); got != tt.want {
				t.Errorf("ids in an exec are %q, want %q", got, tt.want)
			}
			linux := b.state(t, id).User.GetLinux()
			slices.Sort(linux.GetSupplementalGroups())
			f := strings.Fields(tt.want)
			if got := strings.Fields(b.exec(t, id, statusOf("Uid"))); got[0] != f[0] {
				t.Errorf("uid %q", got)
			}
			var status []string
			for _, v := range append([]int64{linux.GetUid(), linux.GetGid()}, linux.GetSupplementalGroups()...) {
				status = append(status, itoa(v))
			}
			if !slices.Equal(status, f) {
				t.Errorf("status says %q, want %q", status, f)
			}
			b.stop(t, id, 0)
		})
	}
}

func testUnknownUser(t *testing.T, b *box) {
	id := b.create(t, "who", "true", secure(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "whoever" }))
	_, err := b.StartContainer(callContext(t, callTimeout), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "whoever") {
		t.Errorf("start as an unknown user: %v", err)
	}
	c := b.containerConfig("group-alone", "true")
	c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
	if _, err := b.ask(callContext(t, callTimeout), c); err == nil {
		t.Error("a group without a user was accepted")
	} else {
		wantCode(t, err, codes.InvalidArgument, "run_as_group")
	}
}

func testReadOnlyRoot(t *testing.T, b *box) {
	got := b.output(t, "read-only", "touch /x 2>&1; touch /dev/shm/x && echo shm", secure(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }))
	if got != "touch: /x: Read-only file system\nshm\n" {
		t.Errorf("got %q", got)
	}
}

func testMaskedPaths(t *testing.T, b *box) {
	got := b.output(t, "masked", "cat /proc/cpuinfo | wc -c; ls /var/www | wc -l; echo 1 > /proc/sys/kernel/domainname 2>&1; touch /tmp/x 2>&1 || true", secure(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.MaskedPaths = []string{"/proc/cpuinfo", "/var/www", "/proc/not-in-this-kernel"}
		s.ReadonlyPaths = []string{"/proc/sys", "/tmp", "/proc/not-there-either"}
	}))
	if !strings.HasPrefix(got, "0\n0\n") || strings.Count(got, "Read-only file system") != 2 {
		t.Errorf("got %q", got)
	}
}

func testSeccomp(t *testing.T, b *box) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	const noChmod = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(profile, []byte(noChmod), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		profile *runtimeapi.SecurityProfile
		want    string
	}{
		{"none", nil, "0\nok\n"},
		{"unconfined", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, "0\nok\n"},
		{"default", &runtimeapi.SecurityProfile{}, "2\nok\n"},
		{"localhost", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}, "2\nno\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := b.output(t, "seccomp-"+tt.name, statusOf("Seccomp")+"; chmod 700 /tmp 2>/dev/null && echo ok || echo no", secure(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = tt.profile }))
			if got != tt.want {
				t.Errorf("mode and chmod: %q, want %q", got, tt.want)
			}
		})
	}
}

func testNoNewPrivileges(t *testing.T, b *box) {
	for want, set := range map[string]bool{"0\n": false, "1\n": true} {
		got := b.output(t, "nnp-"+want[:1], statusOf("NoNewPrivs"), secure(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = set }))
		if got != want {
			t.Errorf("no_new_privs %t gave %q", set, got)
		}
	}
}

// mounting adds mounts.
func mounting(mounts ...*runtimeapi.Mount) change {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = mounts }
}

func testMounts(t *testing.T, b *box) {
	dir := harness.Dir(t)
	for name, text := range map[string]string{"rw/a": "rw\n", "ro/a": "ro\n", "file": "file\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("rw", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	mounts := []*runtimeapi.Mount{
		{HostPath: filepath.Join(dir, "rw"), ContainerPath: "/mnt/new/rw"},
		{HostPath: filepath.Join(dir, "ro"), ContainerPath: "/mnt/ro", Readonly: true},
		{HostPath: filepath.Join(dir, "file"), ContainerPath: "/etc/hosts"},
		{HostPath: filepath.Join(dir, "link"), ContainerPath: "/mnt/link"},
	}
	id := b.start(t, "mounts", "cat /mnt/new/rw/a /mnt/ro/a /etc/hosts /mnt/link/a; touch /mnt/ro/b 2>&1; echo out > /mnt/new/rw/b", mounting(mounts...))
	st := b.waitExited(t, id)
	if got, want := logText(t, st.LogPath), "rw\nro\nfile\nrw\ntouch: /mnt/ro/b: Read-only file system\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "rw", "b")); string(data) != "out\n" {
		t.Errorf("written on the host: %q, %v", data, err)
	}
	if len(st.Mounts) != len(mounts) || st.Mounts[3].HostPath != mounts[3].HostPath {
		t.Errorf("status has the mounts %v", st.Mounts)
	}
	// As with other runtimes, a host path that is missing becomes a directory.
	missing := filepath.Join(dir, "none")
	b.output(t, "missing", "test -d /x", mounting(&runtimeapi.Mount{HostPath: missing, ContainerPath: "/x"}))
	if st, err := os.Stat(missing); err != nil || !st.IsDir() {
		t.Errorf("the host path that was missing: %v", err)
	}
}

func testPropagation(t *testing.T, b *box) {
	dir := harness.Dir(t)
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"host", "inside"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ids := map[runtimeapi.MountPropagation]string{}
	for p, name := range map[runtimeapi.MountPropagation]string{0: "private", 1: "slave", 2: "shared"} {
		ids[p] = b.start(t, "prop-"+name, "exec sleep 1000", mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/p", Propagation: p}),
			secure(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	}
	if err := syscall.Mount("none", filepath.Join(dir, "host"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for p, id := range ids {
		want := "1"
		if p == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			want = "0"
		}
		if got := b.exec(t, id, "grep -c ' /p/host ' /proc/self/mountinfo || true"); got != want {
			t.Errorf("%s sees %s mounts made on the host later", p, got)
		}
		b.exec(t, id, "mount -t tmpfs none /p/inside")
		_, inside := hostMounts(t, filepath.Join(dir, "inside"))
		if inside != (p == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL) {
			t.Errorf("%s: a mount made inside is seen on the host: %t", p, inside)
		}
		b.exec(t, id, "umount /p/inside")
		b.stop(t, id, 0)
	}
}

// hostMounts reports whether something is mounted at dir.
func hostMounts(t *testing.T, dir string) (string, bool) {
	t.Helper()
	table := string(must(os.ReadFile("/proc/self/mountinfo"))(t))
	return table, strings.Contains(table, " "+dir+" ")
}

func testDevices(t *testing.T, b *box) {
	got := b.output(t, "devices", "head -c 3 /dev/gantry-zero | wc -c; echo x > /dev/gantry-zero 2>/dev/null || echo denied; ls /dev | grep -c loop-control", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/gantry-zero", Permissions: "r"}}
		c.Command[2] += " || true"
	})
	if !strings.HasPrefix(got, "3\n") || !strings.HasSuffix(got, "0\n") {
		t.Errorf("got %q", got)
	}
}

func testEnvironment(t *testing.T, b *box) {
	got := b.output(t, "env", "pwd; echo \"$A:$1\"; env | grep -c ^PATH=; tr '\\0' '\\n' < /proc/$$/environ | grep a.b-c", func(c *runtimeapi.ContainerConfig) {
		c.Args = []string{"zero", "one"}
		c.WorkingDir = "/made/here"
		c.Envs = []*runtimeapi.KeyValue{
			{Key: "A", Value: []byte("first")}, {Key: "a.b-c", Value: []byte("dotted")}, {Key: "A", Value: []byte("last=x\ny")},
		}
	})
	if got != "/made/here\nlast=x\ny:one\n1\na.b-c=dotted\n" {
		t.Errorf("got %q", got)
	}
}

func testEcho(t *testing.T, b *box) {
	id := b.create(t, "echo", "true", func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Attempt = 2
		c.Labels["l"], c.Annotations = "v", map[string]string{"io.kubernetes.container.hash": "1234", "odd/KEY_x": "{\"a\": 1}"}
	})
	st := b.state(t, id)
	if st.Metadata.Attempt != 2 || st.Labels["l"] != "v" || st.Annotations["odd/KEY_x"] != "{\"a\": 1}" || len(st.Annotations) != 2 {
		t.Errorf("status: %v", st)
	}
	i := slices.IndexFunc(b.containers(t), func(c *runtimeapi.Container) bool { return c.Id == id })
	c := b.containers(t)[i]
	if c.Metadata.Attempt != 2 || c.Labels["l"] != "v" || c.Annotations["io.kubernetes.container.hash"] != "1234" || c.PodSandboxId != b.id {
		t.Errorf("list: %v", c)
	}
	if c.ImageId != st.ImageId || c.ImageId != b.image(t, b.busybox).Id || st.Image.Image != b.busybox {
		t.Errorf("image ids: %v and %v", c, st)
	}
}
