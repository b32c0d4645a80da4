package images

import (
	"archive/tar"
	"context"
	"fmt"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// WebBody is what [Web] answers to GET / on port 80.
const WebBody = "gantry web\n"

// basePackages are a Debian small enough to download and complete enough to
// work in; libraries come with what needs them.
var basePackages = []string{
	"base-files", "libc6", "dash", "coreutils", "libacl1", "libattr1", "libselinux1", "libgmp10", "libpcre2-8-0",
	"libcrypt1", "gzip", "login", "libpam0g", "libaudit1", "libcap-ng0",
}

var webPackages = []string{"libssl3", "zlib1g", "nginx", "nginx-common"}

var toolPackages = []string{"iputils-ping", "libcap2", "libidn2-0", "libunistring2"}

// netRaw is the security.capability attribute of "cap_net_raw=ep" (version 2).
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

const nginxConf = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
	access_log /dev/stdout;
	default_type text/plain;
	server { listen 80; root /usr/share/nginx/html; }
}
`

// Web is nginx on a Debian base, downloaded as packages. Its layers, from below:
//
//   - the base, uncompressed, names with "./" as dpkg writes them, with hard
//     links (uncompress), setuid files (newgrp), sticky and setgid directories;
//   - nginx, without any parent directory;
//   - tools: bin/ping with a file capability (cap_net_raw=ep), a setuid-root
//     copy beside it, a hard link, no parent directories, a file in /tmp;
//   - the site: a whiteout of usr/share/doc, one of a single file, an opaque
//     mark on usr/share/nginx/html, files replaced;
//   - a last one that brings usr/share/doc back with one file.
//
// It serves [WebBody] on port 80 and logs to its standard output.
func Web(ctx context.Context, cache string, o Options) (v1.Image, error) {
	mt := o.Format.mediaTypes()
	base, err := baseLayer(ctx, cache)
	if err != nil {
		return nil, err
	}
	bottom, err := base.plain(mt.plainLayer)
	if err != nil {
		return nil, err
	}
	nginx, err := nginxLayer(ctx, cache)
	if err != nil {
		return nil, err
	}
	tools, err := toolLayer(ctx, cache)
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{bottom}
	for _, l := range []*layerTar{nginx, tools, siteLayer(), lastLayer()} {
		layer, err := l.gzipped(mt.layer)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	config := v1.Config{
		Env:          []string{searchPath},
		Entrypoint:   []string{"/usr/sbin/nginx"},
		Cmd:          []string{"-g", "daemon off;"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		StopSignal:   "SIGQUIT",
		WorkingDir:   "/var/www",
	}
	return assemble(o, config, layers...)
}

func baseLayer(ctx context.Context, cache string) (*layerTar, error) {
	entries, err := packageEntries(ctx, cache, basePackages)
	if err != nil {
		return nil, err
	}
	l := newLayerTar()
	for _, e := range entries {
		l.add(e)
	}
	l.file("./etc/passwd", 0o644, passwd)
	l.file("./etc/group", 0o644, group)
	l.symlink("./bin/sh", "dash")
	l.symlink("./var/run", "/run")
	l.dir("./var/www", 0o755)
	return l, nil
}

func nginxLayer(ctx context.Context, cache string) (*layerTar, error) {
	entries, err := packageEntries(ctx, cache, webPackages)
	if err != nil {
		return nil, err
	}
	l := newLayerTar()
	for _, e := range withoutParents(entries) {
		l.add(e)
	}
	return l, nil
}

func toolLayer(ctx context.Context, cache string) (*layerTar, error) {
	entries, err := packageEntries(ctx, cache, toolPackages)
	if err != nil {
		return nil, err
	}
	l := newLayerTar()
	var ping entry
	for _, e := range withoutParents(entries) {
		if path.Base(e.header.Name) == "ping" {
			ping = e
			e.header.Format = tar.FormatPAX
			e.header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": netRaw}
		}
		l.add(e)
	}
	if ping.header.Name == "" {
		return nil, fmt.Errorf("package iputils-ping has no ping")
	}
	l.file("usr/local/bin/ping-setuid", 0o4755, string(ping.data))
	l.hardlink("usr/local/bin/ping-hard", "usr/local/bin/ping-setuid")
	l.file("tmp/from-a-layer", 0o600, "The layer of this file does not say what /tmp is like.\n")
	return l, nil
}

func siteLayer() *layerTar {
	l := newLayerTar()
	l.dir("usr", 0o755)
	l.dir("usr/share", 0o755)
	l.whiteout("usr/share/doc")
	l.dir("usr/share/nginx", 0o755)
	l.dir("usr/share/nginx/html", 0o755)
	l.opaque("usr/share/nginx/html")
	l.file("usr/share/nginx/html/index.html", 0o644, WebBody)
	l.whiteout("etc/nginx/sites-available/default")
	l.file("etc/nginx/nginx.conf", 0o644, nginxConf)
	return l
}

func lastLayer() *layerTar {
	l := newLayerTar()
	l.file("usr/share/doc/README", 0o644, "What was here is gone.\n")
	return l
}
