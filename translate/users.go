package translate

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/appc/spec/schema"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// setUser writes the user and the group of a container into its app. Without a
// user CRI leaves both to the image.
func setUser(ra *schema.RuntimeApp, sec *runtimeapi.LinuxContainerSecurityContext, img Image) {
	user, group := splitUser(img.Config.Config.User)
	switch {
	case sec.GetRunAsUsername() != "":
		user, group = sec.GetRunAsUsername(), ""
	case sec.GetRunAsUser() != nil:
		user, group = strconv.FormatInt(sec.GetRunAsUser().GetValue(), 10), ""
	}
	if sec.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sec.GetRunAsGroup().GetValue(), 10)
	}
	ra.App.User = user
	ra.App.Group = group
	if group == "" {
		// appc wants a group. Naming the user's, as rkt does, would make 1000 of a
		// user 1000 whom /etc/passwd does not know; for Kubernetes that is group 0.
		ra.App.Group = user
		ra.Annotations.Set(annotationGroup, groupPrimary)
	}
}

// identityOf returns the names to look up in the root filesystem; an empty group is
// the user's primary group.
func identityOf(ra *schema.RuntimeApp) (user, group string) {
	if v, _ := ra.Annotations.Get(annotationGroup.String()); v == groupPrimary {
		return ra.App.User, ""
	}
	return ra.App.User, ra.App.Group
}

// processUser returns the user of an app's process, its groups sorted and the
// primary one among them. Under the policy Merge, CRI's, the user has the groups
// of /etc/group too.
func processUser(ra *schema.RuntimeApp, c *runtimeapi.ContainerConfig, n Node) (specs.User, error) {
	resolved := n.User
	if resolved == nil {
		var err error
		if resolved, err = numericUser(identityOf(ra)); err != nil {
			return specs.User{}, err
		}
	}
	groups := []uint32{resolved.GID}
	policy := c.GetLinux().GetSecurityContext().GetSupplementalGroupsPolicy()
	// appc's supplementaryGIDs are the whole list; groups of the image are CRI's.
	if c != nil && policy == runtimeapi.SupplementalGroupsPolicy_Merge {
		groups = append(groups, resolved.Groups...)
	}
	for _, g := range ra.App.SupplementaryGIDs {
		if g < 0 || g >= math.MaxUint32 {
			return specs.User{}, fmt.Errorf("supplementaryGIDs: %d is not a group id: %w", g, errdefs.ErrInvalid)
		}
		groups = append(groups, uint32(g))
	}
	slices.Sort(groups)
	return specs.User{UID: resolved.UID, GID: resolved.GID, AdditionalGids: slices.Compact(groups)}, nil
}

// numericUser understands what needs no /etc/passwd.
func numericUser(user, group string) (*User, error) {
	uid, err := numericID(user)
	if err != nil {
		return nil, fmt.Errorf("user %q was not looked up in the root filesystem: %w", user, err)
	}
	if group == "" {
		return &User{UID: uid}, nil
	}
	gid, err := numericID(group)
	if err != nil {
		return nil, fmt.Errorf("group %q was not looked up in the root filesystem: %w", group, err)
	}
	return &User{UID: uid, GID: gid}, nil
}

func numericID(s string) (uint32, error) {
	if s == "root" {
		return 0, nil
	}
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, errdefs.ErrNotFound
	}
	return uint32(id), nil
}
