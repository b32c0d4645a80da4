package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/gantry-cri/gantry/translate"
)

func newTranslate() *cobra.Command {
	var imageConfig, handler string
	cmd := &cobra.Command{
		Use:   "translate POD.json [CONTAINER.json]",
		Short: "Print the manifest that a CRI request becomes, and the OCI configuration",
		Long: `Print what a request of the kubelet becomes: of a sandbox its pod manifest, of a
container its pod manifest and then the OCI runtime configuration. The files are
those of crictl, JSON or YAML. Nothing is looked up on the node: paths, users and
ids are stand-ins.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usageError{fmt.Errorf("want the files of a pod and of a container, got %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var pod runtimeapi.PodSandboxConfig
			if err := readMessage(args[0], &pod); err != nil {
				return err
			}
			if len(args) == 1 {
				pm, err := translate.Sandbox(&pod, handler)
				if err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), pm)
			}
			var container runtimeapi.ContainerConfig
			if err := readMessage(args[1], &container); err != nil {
				return err
			}
			return translateContainer(cmd, &pod, &container, imageConfig)
		},
	}
	registerJSONFormat(cmd.Flags())
	cmd.Flags().StringVar(&imageConfig, "image-config", "", "OCI image configuration `FILE` (default: an empty image)")
	cmd.Flags().StringVar(&handler, "handler", "", "runtime `HANDLER` of the pod")
	return cmd
}

// readMessage reads a CRI message as crictl's users write it.
func readMessage(path string, m proto.Message) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if raw, err = yaml.YAMLToJSON(raw); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := protojson.Unmarshal(raw, m); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func translateContainer(cmd *cobra.Command, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, imageConfig string) error {
	img, err := imageOf(c, imageConfig)
	if err != nil {
		return err
	}
	sandbox, err := translate.Sandbox(pod, "")
	if err != nil {
		return err
	}
	pm, err := translate.Container(pod, c, img)
	if err != nil {
		return err
	}
	needs, err := translate.NeedsOf(pm, string(pm.Apps[0].Name))
	if err != nil {
		return err
	}
	node, place := standIns()
	node.AppArmorProfiles = needs.AppArmorProfiles
	config, warnings, err := translate.ToOCI(pm, string(pm.Apps[0].Name), sandbox, node, place)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "translate: "+w)
	}
	if err := printJSON(cmd.OutOrStdout(), pm); err != nil {
		return err
	}
	return printJSON(cmd.OutOrStdout(), config)
}
