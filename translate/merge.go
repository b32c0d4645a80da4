package translate

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// mergePatch lays one JSON object over another as RFC 7386 has it: objects are
// merged, null deletes, everything else replaces. Numbers keep their digits.
func mergePatch(target, patch []byte) ([]byte, error) {
	var t, p map[string]any
	if err := decodeObject(target, &t); err != nil {
		return nil, err
	}
	if err := decodeObject(patch, &p); err != nil {
		return nil, err
	}
	return json.Marshal(mergeObjects(t, p))
}

func decodeObject(raw []byte, into *map[string]any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	return nil
}

func mergeObjects(target, patch map[string]any) map[string]any {
	if target == nil {
		target = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(target, k)
		case map[string]any:
			below, _ := target[k].(map[string]any)
			target[k] = mergeObjects(below, v)
		default:
			target[k] = v
		}
	}
	return target
}
