package network

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strings"
	"sync"

	"github.com/gantry-cri/gantry/stage0/errdefs"
)

// Kubernetes' annotations for a pod's bandwidth; the values are quantities in bits a second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// bandwidth is the value of CNI's capability of that name: bits a second and bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

func parseBandwidth(annotations map[string]string) (bandwidth, error) {
	var b bandwidth
	var err error
	if v, ok := annotations[ingressAnnotation]; ok {
		if b.IngressRate, err = rate(v); err != nil {
			return b, fmt.Errorf("annotation %s: %w", ingressAnnotation, err)
		}
		b.IngressBurst = math.MaxUint32 // no limit of its own, as other runtimes do
	}
	if v, ok := annotations[egressAnnotation]; ok {
		if b.EgressRate, err = rate(v); err != nil {
			return b, fmt.Errorf("annotation %s: %w", egressAnnotation, err)
		}
		b.EgressBurst = math.MaxUint32
	}
	return b, nil
}

var (
	// Compiled when it is wanted: every start of the program would wait for it.
	quantity = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^\+?([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,2}|m|k|[KMGTPE]i|[MGTPE])?$`)
	})
	suffixes = map[string]*big.Rat{
		"": big.NewRat(1, 1), "m": big.NewRat(1, 1000), "k": pow(1000, 1),
		"M": pow(1000, 2), "G": pow(1000, 3), "T": pow(1000, 4), "P": pow(1000, 5), "E": pow(1000, 6),
		"Ki": pow(1024, 1), "Mi": pow(1024, 2), "Gi": pow(1024, 3), "Ti": pow(1024, 4), "Pi": pow(1024, 5), "Ei": pow(1024, 6),
	}
	// The limits that Kubernetes holds itself to.
	minRate, maxRate = big.NewRat(1000, 1), pow(1000, 5)
)

func pow(base, exp int64) *big.Rat {
	return new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(exp), nil))
}

// rate reads a Kubernetes quantity ("10M", "1.5Gi", "1e6") between 1k and 1P bits a second, rounded up.
func rate(s string) (uint64, error) {
	m := quantity().FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%q is not a quantity: %w", s, errdefs.ErrInvalid)
	}
	number, unit := m[1], suffixes[m[2]]
	if unit == nil { // an exponent
		number, unit = number+m[2], suffixes[""]
	}
	// Rat refuses ".": the expression demands a digit; a trailing point is fine.
	r, ok := new(big.Rat).SetString(strings.TrimSuffix(number, "."))
	if !ok {
		return 0, fmt.Errorf("%q is not a quantity: %w", s, errdefs.ErrInvalid)
	}
	r.Mul(r, unit)
	if r.Cmp(minRate) < 0 || r.Cmp(maxRate) > 0 {
		return 0, fmt.Errorf("%q is not between 1k and 1P bits a second: %w", s, errdefs.ErrInvalid)
	}
	up, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		up.Add(up, big.NewInt(1))
	}
	return up.Uint64(), nil
}
