//! The functions an expression may call: DataFusion's scalar functions whose answer depends on their arguments alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use arrow::datatypes::DataType;
use datafusion_common::config::ConfigOptions;
use datafusion_common::{Result, TableReference, plan_err};
use datafusion_expr::planner::{ContextProvider, ExprPlanner};
use datafusion_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF, TableSource, Volatility, WindowUDF};
use datafusion_functions::core::planner::CoreFunctionPlanner;
use datafusion_functions::datetime::planner::DatetimeFunctionPlanner;
use datafusion_functions::unicode::planner::UnicodeFunctionPlanner;

use super::ExpressionError;
use crate::error::nearest;

/// Functions of many rows that people try first.
const AGGREGATES: &[&str] = &[
    "array_agg",
    "avg",
    "count",
    "first_value",
    "last_value",
    "max",
    "mean",
    "median",
    "min",
    "row_number",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// Every function by each of its names.
#[derive(Debug)]
pub struct Registry {
    functions: BTreeMap<String, Arc<ScalarUDF>>,
    /// Functions whose answer depends on the clock, on chance or on the session.
    volatile: BTreeSet<String>,
    options: ConfigOptions,
    planners: Vec<Arc<dyn ExprPlanner>>,
}

/// The one registry of the process.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let (mut functions, mut volatile) = (BTreeMap::new(), BTreeSet::new());
        for function in datafusion_functions::all_default_functions() {
            let fixed = function.signature().volatility == Volatility::Immutable && function.name() != "version";
            for name in std::iter::once(function.name()).chain(function.aliases().iter().map(String::as_str)) {
                if fixed {
                    functions.insert(name.to_string(), function.clone());
                } else {
                    volatile.insert(name.to_string());
                }
            }
        }
        let planners: Vec<Arc<dyn ExprPlanner>> = vec![
            Arc::new(CoreFunctionPlanner::default()),
            Arc::new(DatetimeFunctionPlanner),
            Arc::new(UnicodeFunctionPlanner),
        ];
        Registry { functions, volatile, options: ConfigOptions::default(), planners }
    })
}

impl Registry {
    /// Says why `name` can't be called, if it can't.
    pub fn check(&self, name: &str) -> std::result::Result<(), ExpressionError> {
        let name = name.to_lowercase();
        if self.functions.contains_key(&name) {
            return Ok(());
        }
        let (message, hint) = if self.volatile.contains(&name) {
            let message = format!("`{name}` may answer differently for the same row, so a replay would differ");
            (message, Some("use the event's own time and columns".into()))
        } else if AGGREGATES.contains(&name.as_str()) {
            let message = format!("`{name}` needs many rows, and an expression sees one");
            (message, Some("aggregate over a window in a feature group, under `features`".into()))
        } else {
            let hint = nearest(&name, self.functions.keys().map(String::as_str));
            (format!("there is no function `{name}`"), hint)
        };
        Err(ExpressionError { message, hint })
    }
}

impl ContextProvider for Registry {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        plan_err!("there is no table `{name}`")
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.get(name).cloned()
    }
    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }
    fn get_aggregate_meta(&self, _name: &str) -> Option<Arc<AggregateUDF>> {
        None
    }
    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }
    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.options
    }
    fn udf_names(&self) -> Vec<String> {
        self.functions.keys().cloned().collect()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }
}
